-- Ending attempts. Every statement here runs after `lock_tasks` in the same transaction, so that the task rows are locked,
-- in the order of their ids, and each statement's snapshot sees what the holders of those locks before us committed.
-- A lease that no longer holds changes nothing: its row is missing from the answer.
--
-- `case when u.state = 'PROCESSING' then u.epoch end = i.epoch` says that the lease holds, in words that no partial index
-- knows: rows are looked up by their primary key, whatever the statistics say. With the condition in plain words a table
-- whose statistics are behind is read through such an index, from end to end for each row of the batch.

-- name: lock_tasks
select count(*) from (
    select 1 from headrace_core.units where unit = -1 and task_id = any(%(tasks)b::uuid[]) order by task_id for update
) as locked;

-- name: complete_tasks
-- Plain tasks that are done.
with done as (
    update headrace_core.units u
    set state = 'COMPLETED', reason = '', result = i.result::json, holder = null, checkpoint = null, fraction = 1,
        ended_at = now(), updated_at = now(), sequence = u.sequence + 1
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(results)b::text[])
        as i (task_id, unit, epoch, holder, result)
    where u.task_id = i.task_id and u.unit = i.unit and u.unit = -1 and case when u.state = 'PROCESSING' then u.epoch end = i.epoch and u.holder = i.holder
    returning u.task_id, u.unit, u.sequence, u.generation, u.attempt, u.queue,
        case when u.generation = 1 then extract(epoch from now() - greatest(u.run_at, u.created_at))::float8 end as took
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, terminal)
    select task_id, sequence, generation, unit, attempt, 'state', 'COMPLETED', true from done
)
select task_id, unit, sequence, queue, took from done;

-- name: complete_merges
-- Merges that are done, and their tasks with them.
with done as (
    update headrace_core.units u
    set state = 'COMPLETED', reason = '', holder = null, checkpoint = null, ended_at = now(), updated_at = now()
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(results)b::text[])
        as i (task_id, unit, epoch, holder, result)
    where u.task_id = i.task_id and u.unit = i.unit and u.unit = -2 and case when u.state = 'PROCESSING' then u.epoch end = i.epoch and u.holder = i.holder
    returning u.task_id, u.unit, u.attempt, i.result
), ended as (
    update headrace_core.units t
    set state = 'COMPLETED', reason = '', result = d.result::json, fraction = 1, ended_at = now(), updated_at = now(),
        sequence = t.sequence + 1
    from done d
    where t.task_id = d.task_id and case when t.state = 'PROCESSING' then t.unit end = -1
    returning t.task_id, t.sequence, t.generation, d.attempt, t.queue,
        case when t.generation = 1 then extract(epoch from now() - greatest(t.run_at, t.created_at))::float8 end as took
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, terminal)
    select task_id, sequence, generation, -2, attempt, 'state', 'COMPLETED', true from ended
)
select d.task_id, d.unit, e.sequence, e.queue, e.took from done d join ended e using (task_id);

-- name: complete_shards
-- Shards that are done. The task counts them by the rows this statement itself changed; `reached` is true for the batch
-- that brought the count to the quorum, and for no other.
with done as (
    update headrace_core.units u
    set state = 'COMPLETED', reason = '', result = i.result::json, holder = null, checkpoint = null, ended_at = now(),
        updated_at = now()
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(results)b::text[])
        as i (task_id, unit, epoch, holder, result)
    where u.task_id = i.task_id and u.unit = i.unit and u.unit >= 0 and u.state = 'PROCESSING'
      and u.epoch = i.epoch and u.holder = i.holder
    returning u.task_id, u.unit
), counted as (
    select task_id, -1 as unit, count(*)::int as n from done group by task_id
), tasks as (
    update headrace_core.units t
    set done_shards = t.done_shards + c.n, fraction = (t.done_shards + c.n)::real / t.total_shards, updated_at = now(),
        sequence = t.sequence + 1
    from counted c
    where t.task_id = c.task_id and t.unit = c.unit
    returning t.task_id, t.sequence, t.generation, t.attempt, t.fraction, t.done_shards, t.total_shards,
        t.done_shards >= t.needed_shards and t.done_shards - c.n < t.needed_shards as reached
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, fraction, text, done, total)
    select task_id, sequence, generation, -1, 0, 'progress', fraction, '', done_shards, total_shards from tasks
)
select d.task_id, d.unit, t.sequence, t.reached from done d join tasks t using (task_id);

-- name: create_merges
-- The quorum is reached: freeze the set of parts by ending the shards that are still open, and create the merge, which the
-- primary key makes unique (a redrive resets it instead).
with superseded as (
    update headrace_core.units
    set state = 'CANCELLED', reason = 'SUPERSEDED', holder = null, ended_at = now(), updated_at = now()
    where task_id = any(%(tasks)b::uuid[]) and unit >= 0 and state in ('PENDING', 'PROCESSING')
)
insert into headrace_core.units (task_id, unit, generation, epoch, namespace, kind, queue, priority, payload, due_at, offered_at,
    resumed, max_attempts, max_crashes, deadline)
select task_id, -2, generation, epoch, namespace, kind, queue, priority, '{}', now(), now(), true, max_attempts, max_crashes, deadline
from headrace_core.units
where task_id = any(%(tasks)b::uuid[]) and unit = -1
on conflict (task_id, unit) do nothing
returning task_id, unit, queue, priority, resumed, dispatch;

-- name: plan_task
-- A plan is done: the task keeps PROCESSING without a holder, its shards are units of their own from here on. Their epochs
-- go on from the plan's: after a redrive with another payload no number is given out twice.
with planned as (
    update headrace_core.units u
    set holder = null, checkpoint = null, total_shards = cardinality(%(shards)b::text[]), needed_shards = %(needed)s,
        done_shards = 0, failed_shards = 0, fraction = 0, planned_at = now(), updated_at = now(), sequence = u.sequence + 1
    where u.task_id = %(task)s and u.unit = -1 and u.state = 'PROCESSING' and u.epoch = %(epoch)s and u.holder = %(holder)s
    returning u.*
), shards as (
    insert into headrace_core.units (task_id, unit, generation, epoch, namespace, kind, queue, priority, payload, due_at, offered_at,
        resumed, max_attempts, max_crashes, deadline)
    select p.task_id, s.position - 1, p.generation, p.epoch, p.namespace, p.kind, p.queue, p.priority, s.payload::json, now(), now(),
        true, p.max_attempts, p.max_crashes, p.deadline
    from planned p, unnest(%(shards)b::text[]) with ordinality as s (payload, position)
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, plan, attempt, type, fraction, text, done, total)
    select task_id, sequence, generation, -1, true, attempt, 'progress', 0, '', 0, total_shards from planned
)
select task_id, unit, sequence, queue, priority, total_shards from planned;

-- name: reschedule
-- Units that go on in another attempt. The attempt that ended is kept; the charge falls on one budget or on none.
-- `renewal` is null, or the count at which a lost lease was last seen: a holder that lives after all keeps its unit.
with back as (
    update headrace_core.units u
    set state = 'PENDING', reason = i.reason, holder = null, due_at = now() + i.due_in * interval '1 second', dispatch = u.dispatch + 1,
        published_in = null, published_seq = null, offered_at = case when i.due_in > 0 then null else now() end, resumed = true,
        failures = u.failures + (i.charge = 'failure')::int, crashes = u.crashes + (i.charge = 'crash')::int,
        interruptions = u.interruptions + (i.charge = 'interruption')::int, suspect = u.suspect or i.renewal is not null,
        error = coalesce(i.error::json, u.error), checkpoint = coalesce(i.checkpoint::json, u.checkpoint), updated_at = now(),
        sequence = case when u.unit = -1 then u.sequence + 1 else u.sequence end
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(due_ins)b::float8[],
        %(charges)b::text[], %(reasons)b::text[], %(errors)b::text[], %(checkpoints)b::text[], %(renewals)b::int[])
        as i (task_id, unit, epoch, holder, due_in, charge, reason, error, checkpoint, renewal)
    where u.task_id = i.task_id and u.unit = i.unit and case when u.state = 'PROCESSING' then u.epoch end = i.epoch and u.holder = i.holder
      and (i.renewal is null or u.renewal = i.renewal)
    returning u.*, i.error as attempt_error, i.due_in
), kept as (
    insert into headrace_core.attempts (task_id, unit, plan, generation, attempt, epoch, worker, started_at, outcome, error)
    select task_id, unit, kind = any(%(sharded)s) and unit = -1, generation, attempt, epoch, worker, attempt_at, 'PENDING',
        coalesce(attempt_error::json, json_build_object('reason', reason, 'type', '', 'message', '')) from back
), of_parts as (
    select task_id, -1 as unit, count(*) as n from back where unit <> -1 group by task_id
), tasks as (
    update headrace_core.units t set sequence = t.sequence + p.n, updated_at = now()
    from of_parts p where t.task_id = p.task_id and t.unit = p.unit
    returning t.task_id, t.sequence - p.n as before
), numbered as (
    select b.*, coalesce(t.before + row_number() over (partition by b.task_id order by b.unit), b.sequence) as event_sequence
    from back b left join tasks t on t.task_id = b.task_id and b.unit <> -1
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, plan, attempt, type, state, reason, error, due_at)
    select task_id, event_sequence, generation, unit, kind = any(%(sharded)s) and unit = -1, attempt, 'state', 'PENDING', reason,
        attempt_error::json, case when due_in > 0 then due_at end
    from numbered
)
select task_id, unit, event_sequence as sequence, queue, priority, resumed, dispatch, due_in from numbered;

-- name: fail_units
-- Units that failed for good. Shards and merges become FAILED; a task's own unit waits for `end_tasks` in this transaction.
-- `lost` tells that the task cannot complete any more.
with failed as (
    update headrace_core.units u
    set state = case when u.unit = -1 then u.state else 'FAILED' end, reason = i.reason, holder = null, error = i.error::json,
        failures = u.failures + (i.charge = 'failure')::int, crashes = u.crashes + (i.charge = 'crash')::int,
        interruptions = u.interruptions + (i.charge = 'interruption')::int, updated_at = now(),
        ended_at = case when u.unit = -1 then u.ended_at else now() end
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(charges)b::text[],
        %(reasons)b::text[], %(errors)b::text[], %(renewals)b::int[])
        as i (task_id, unit, epoch, holder, charge, reason, error, renewal)
    where u.task_id = i.task_id and u.unit = i.unit and case when u.state = 'PROCESSING' then u.epoch end = i.epoch and u.holder = i.holder
      and (i.renewal is null or u.renewal = i.renewal)
    returning u.*
), kept as (
    insert into headrace_core.attempts (task_id, unit, plan, generation, attempt, epoch, worker, started_at, outcome, error)
    select task_id, unit, kind = any(%(sharded)s) and unit = -1, generation, attempt, epoch, worker, attempt_at, 'FAILED', error
    from failed
), of_parts as (
    select task_id, -1 as unit, count(*) as n, count(*) filter (where unit >= 0)::int as shards, bool_or(unit = -2) as merge
    from failed where unit <> -1 group by task_id
), tasks as (
    update headrace_core.units t
    set sequence = t.sequence + p.n, failed_shards = t.failed_shards + p.shards, updated_at = now()
    from of_parts p where t.task_id = p.task_id and t.unit = p.unit
    returning t.task_id, t.sequence - p.n as before, p.merge or t.total_shards - t.failed_shards < t.needed_shards as lost,
        not p.merge and t.needed_shards < t.total_shards as by_quorum
), numbered as (
    select f.*, t.before + row_number() over (partition by f.task_id order by f.unit) as event_sequence, coalesce(t.lost, true) as lost,
        coalesce(t.by_quorum, false) as by_quorum
    from failed f left join tasks t on t.task_id = f.task_id
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, reason, error)
    select task_id, event_sequence, generation, unit, attempt, 'state', 'FAILED', reason, error from numbered where unit <> -1
)
select task_id, unit, attempt, event_sequence as sequence, lost, by_quorum, reason, error from numbered order by task_id, unit;

-- name: end_tasks
-- The terminal transition, for every end but COMPLETED: the task and all its open units, the attempts that were running, the
-- event, and for FAILED the dead letter: one statement, one transaction. Tasks that have ended already are left alone.
-- `units` and `attempts` name the unit that caused it, for the event.
with asked as (
    select a.*, -1 as own from unnest(%(tasks)b::uuid[], %(reasons)b::text[], %(errors)b::text[], %(units)b::int[], %(attempts)b::int[])
        as a (task_id, reason, error, unit, attempt)
), open as (
    select u.*
    from asked a
    cross join lateral (
        select u.task_id, u.unit, u.generation, u.attempt, u.epoch, u.worker, u.attempt_at, u.kind,
            u.state = 'PROCESSING' and u.holder is not null as running
        from headrace_core.units u
        where u.task_id = a.task_id and case when u.state in ('PENDING', 'PROCESSING') then u.unit end is not null
        for update of u
    ) u
), ended as (
    update headrace_core.units t
    set state = %(state)s, reason = a.reason, error = coalesce(a.error::json, t.error), holder = null, ended_at = now(),
        updated_at = now(), sequence = t.sequence + 1
    from asked a
    where t.task_id = a.task_id and t.unit = a.own and t.state in ('PENDING', 'PROCESSING')
    returning t.*, a.unit as cause_unit, a.attempt as cause_attempt, a.error as cause_error
), superseded as (
    update headrace_core.units u
    set state = 'CANCELLED', reason = 'SUPERSEDED', holder = null, ended_at = now(), updated_at = now()
    from open o
    where u.task_id = o.task_id and u.unit = o.unit and o.unit <> -1 and o.task_id in (select task_id from ended)
      and u.state in ('PENDING', 'PROCESSING')
), kept as (
    insert into headrace_core.attempts (task_id, unit, plan, generation, attempt, epoch, worker, started_at, outcome, error)
    select r.task_id, r.unit, r.kind = any(%(sharded)s) and r.unit = -1, r.generation, r.attempt, r.epoch, r.worker, r.attempt_at,
        case when %(state)s = 'EXPIRED' then 'EXPIRED' else 'CANCELLED' end,
        json_build_object('reason', e.reason, 'type', '', 'message', 'the task ended while this attempt was running')
    from open r join ended e using (task_id)
    where r.running
    on conflict do nothing
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, reason, error, terminal)
    select task_id, sequence, generation, cause_unit, cause_attempt, 'state', state, reason, cause_error::json, true from ended
), letters as (
    insert into headrace_core.dead_letters (id, task_id, generation, namespace, queue, kind, reason, error, budgets)
    select task_id || '-' || generation, task_id, generation, namespace, queue, kind, reason, error,
        json_build_object('failures', failures, 'maxAttempts', max_attempts, 'crashes', crashes, 'maxCrashes', max_crashes,
            'interruptions', interruptions)
    from ended where state = 'FAILED'
)
select task_id, sequence, generation, state, queue, priority,
    case when generation = 1 then extract(epoch from now() - greatest(run_at, created_at))::float8 end as took
from ended;
