-- name: due_units
-- What could be started now, straight from Postgres, and has been due for so many seconds: locked until the claim in
-- the same transaction.
select u.task_id, u.unit
from headrace_core.units u
where u.state = 'PENDING' and u.queue = %(queue)s and u.due_at <= now() - make_interval(secs => %(overdue)s)
  and u.kind = any(%(kinds)s)
  and (select q.paused_at from headrace_core.queues q where q.name = %(queue)s) is null
order by u.resumed desc, u.priority desc, u.due_at, u.task_id
limit %(limit)s
for update of u skip locked;

-- name: claim
-- Start units: take the next epoch for this holder, wherever the unit is pending, due, of a kind that the holder runs,
-- and its queue is not paused. What is due but cannot start here is put back for the relay to publish anew. One row for
-- each unit that was asked for and exists; `claimed` tells which were taken, `state` what the others were a moment ago.
with claimed as (
    update headrace_core.units u
    set state = 'PROCESSING', reason = '', epoch = u.epoch + 1, holder = %(holder)s, worker = %(worker)s, attempt = u.attempt + 1,
        attempt_at = now(), started_at = coalesce(u.started_at, now()), updated_at = now(), resumed = true,
        sequence = case when u.unit = -1 then u.sequence + 1 else u.sequence end
    from unnest(%(tasks)b::uuid[], %(units)b::int[]) as a (task_id, unit)
    where u.task_id = a.task_id and u.unit = a.unit and u.kind = any(%(kinds)s)
      -- In words that no partial index knows: settle.sql says why.
      and case when u.state = 'PENDING' then u.due_at end <= now()
      and not u.queue = any(coalesce((select array_agg(name) from headrace_core.queues where paused_at is not null), '{}'))
    returning u.task_id, u.unit, u.state, u.kind, u.queue, u.namespace, u.generation, u.epoch, u.attempt, u.payload, u.checkpoint,
        u.deadline, u.failures, u.crashes, u.interruptions, u.max_attempts, u.max_crashes, u.suspect, u.sequence,
        extract(epoch from now() - u.due_at)::float8 as waited,
        -- Shards and merges belong to the trace of their task. Looked up only for a holder that traces.
        case when %(traced)s then case when u.unit = -1 then u.trace_context else (
            select t.trace_context from headrace_core.units t where t.task_id = u.task_id and t.unit = -1
        ) end end as trace_context
), refused as (
    select l.*, q.paused_at is not null as paused, l.kind = any(%(kinds)s) as known
    from unnest(%(tasks)b::uuid[], %(units)b::int[]) as a (task_id, unit)
    cross join lateral (
        select u.task_id, u.unit, u.state, u.due_at <= now() as due, u.queue, u.kind
        from headrace_core.units u
        where u.task_id = a.task_id and u.unit = a.unit
        offset 0
    ) l
    left join headrace_core.queues q on q.name = l.queue
    where (a.task_id, a.unit) not in (select task_id, unit from claimed)
), put_back as (
    update headrace_core.units u
    set due_at = case when r.paused then u.due_at else now() + interval '5 s' end,
        dispatch = u.dispatch + 1, published_in = null, published_seq = null, offered_at = null
    from refused r
    where u.task_id = r.task_id and u.unit = r.unit and (r.paused or not r.known)
      and case when u.state = 'PENDING' then u.due_at end <= now()
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, plan, attempt, type, state)
    select task_id, sequence, generation, unit, kind = any(%(sharded)s), attempt, 'state', 'PROCESSING' from claimed where unit = -1
)
select task_id, unit, state, true as due, false as paused, true as known, true as claimed, epoch, sequence, waited,
    kind, queue, namespace, generation, attempt, payload, checkpoint, deadline, failures, crashes, interruptions,
    max_attempts, max_crashes, suspect, trace_context
from claimed
union all
select task_id, unit, state, due, paused, known, false, null, null, null,
    null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
from refused;
