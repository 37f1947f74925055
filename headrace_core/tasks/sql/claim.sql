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
-- each unit that was asked for and exists; `claimed` tells which were taken.
with locked as (
    select l.*, q.paused_at is not null as paused, l.kind = any(%(kinds)s) as known
    from unnest(%(tasks)b::uuid[], %(units)b::int[]) as a (task_id, unit)
    cross join lateral (
        select u.task_id, u.unit, u.state, u.due_at <= now() as due, u.queue, u.kind
        from headrace_core.units u
        where u.task_id = a.task_id and u.unit = a.unit
        for update of u
    ) l
    left join headrace_core.queues q on q.name = l.queue
), claimed as (
    update headrace_core.units u
    set state = 'PROCESSING', reason = '', epoch = u.epoch + 1, holder = %(holder)s, worker = %(worker)s, attempt = u.attempt + 1,
        attempt_at = now(), started_at = coalesce(u.started_at, now()), updated_at = now(), resumed = true,
        sequence = case when u.unit = -1 then u.sequence + 1 else u.sequence end
    from locked l
    where u.task_id = l.task_id and u.unit = l.unit and l.state = 'PENDING' and l.due and not l.paused and l.known
    returning u.task_id, u.unit, u.state, u.kind, u.queue, u.namespace, u.generation, u.epoch, u.attempt, u.payload, u.checkpoint,
        u.deadline, u.failures, u.crashes, u.interruptions, u.max_attempts, u.max_crashes, u.suspect, u.sequence
), put_back as (
    update headrace_core.units u
    set due_at = case when l.paused then u.due_at else now() + interval '5 s' end,
        dispatch = u.dispatch + 1, published_in = null, published_seq = null, offered_at = null
    from locked l
    where u.task_id = l.task_id and u.unit = l.unit and l.state = 'PENDING' and l.due and (l.paused or not l.known)
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, plan, attempt, type, state)
    select task_id, sequence, generation, unit, kind = any(%(sharded)s), attempt, 'state', 'PROCESSING' from claimed where unit = -1
)
select task_id, unit, state, true as due, false as paused, true as known, true as claimed,
    kind, queue, namespace, generation, epoch, attempt, payload, checkpoint, deadline, failures, crashes, interruptions,
    max_attempts, max_crashes, suspect, sequence
from claimed
union all
select task_id, unit, state, due, paused, known, false,
    null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null
from locked where state <> 'PENDING' or not due or paused or not known;
