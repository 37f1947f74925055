-- name: list_letters
-- A page, newest first, from behind the entry (`after_time`, `after_id`).
select id, task_id, generation, namespace, queue, kind, reason, error, budgets, created_at, published_at, resolved_at, resolution
from headrace_core.dead_letters
where (%(include_resolved)s or resolved_at is null)
  and (%(namespace)s::text is null or namespace = %(namespace)s)
  and (%(within)s::text[] is null or namespace = any(%(within)s))
  and (%(queue)s::text is null or queue = %(queue)s)
  and (%(kind)s::text is null or kind = %(kind)s)
  and (%(reason)s::text is null or reason = %(reason)s)
  and (%(failed_before)s::timestamptz is null or created_at < %(failed_before)s)
  and (%(after_time)s::timestamptz is null
       or created_at < %(after_time)s or (created_at = %(after_time)s and id > %(after_id)s))
order by created_at desc, id
limit %(limit)s;

-- name: find_letters
-- By their own ids, or by their tasks': then the latest of each task. `asked` is the id that was asked for.
select a.asked, d.id, d.task_id, d.generation, d.namespace, d.queue, d.kind, d.reason, d.error, d.budgets, d.created_at,
       d.published_at, d.resolved_at, d.resolution
from unnest(%(letters)s::text[]) as a (asked) join headrace_core.dead_letters d on d.id = a.asked
union all
select a.asked::text, d.*
from unnest(%(tasks)s::uuid[]) as a (asked)
cross join lateral (
    select id, task_id, generation, namespace, queue, kind, reason, error, budgets, created_at, published_at, resolved_at,
           resolution
    from headrace_core.dead_letters where task_id = a.asked order by generation desc limit 1
) d;

-- name: match_letters
-- Open entries for a redrive or a discard by filter, oldest first: what waits for its turn under a rate is left out.
select id, task_id, generation
from headrace_core.dead_letters
where resolved_at is null and redrive_at is null
  and (%(namespace)s::text is null or namespace = %(namespace)s)
  and (%(within)s::text[] is null or namespace = any(%(within)s))
  and (%(queue)s::text is null or queue = %(queue)s)
  and (%(kind)s::text is null or kind = %(kind)s)
  and (%(reason)s::text is null or reason = %(reason)s)
  and (%(failed_before)s::timestamptz is null or created_at < %(failed_before)s)
order by created_at, id
limit %(limit)s;

-- name: redrivable
-- Whether the tasks could be redriven now: `failed` in this generation, and `in_time` for the deadline that would hold.
select t.task_id, t.state = 'FAILED' and t.generation = a.generation as failed,
       coalesce(coalesce(%(deadline)s::timestamptz, t.deadline) > now(), true) as in_time
from unnest(%(tasks)s::uuid[], %(generations)s::int[]) as a (task_id, generation)
join headrace_core.units t on t.task_id = a.task_id and t.unit = -1;

-- name: history
-- The attempts of one generation of a task, oldest first.
select unit_type, shard_index, generation, attempt, epoch, worker, started_at, ended_at, outcome, error
from headrace.attempts
where task_id = %(task)s and generation = %(generation)s
order by started_at nulls last, epoch
limit %(limit)s;

-- name: content
-- What failed: the task's payload, or the bytes of a message that was no task.
select d.message, u.payload
from headrace_core.dead_letters d
left join headrace_core.units u on u.task_id = d.task_id and u.unit = -1
where d.id = %(id)s;

-- name: keep_attempts
-- Attempts that stand in rows which a redrive is about to reset or to drop: a plan that completed, and with a new payload
-- also the shards and the merge that did.
insert into headrace_core.attempts (task_id, unit, plan, generation, attempt, epoch, worker, started_at, ended_at, outcome)
select u.task_id, u.unit, u.unit = -1, u.generation, u.attempt, u.epoch, u.worker, u.attempt_at,
       coalesce(case when u.unit = -1 then u.planned_at end, u.ended_at, now()), 'COMPLETED'
from headrace_core.units u
where u.task_id = any(%(tasks)s) and u.attempt > 0
  and (u.unit = -1 and u.planned_at is not null or %(dropping)s and u.unit <> -1 and u.state = 'COMPLETED')
on conflict do nothing;

-- name: trace_contexts
select task_id, trace_context, namespace, queue, kind, generation from headrace_core.units
where task_id = any(%(tasks)s::uuid[]) and unit = -1;

-- name: redrive
-- Failed tasks, whose rows this transaction has locked, go on in a new generation. Without a plan, or with a new payload:
-- PENDING. With a plan: PENDING, and at once PROCESSING again without a holder, as after the plan, with only the units that
-- had not completed waiting: the merge if there is one (its parts are frozen), else the shards. Epochs go on; dropped units
-- leave theirs to the task's row, so that no zombie's epoch comes again.
with chosen as (
    select t.task_id, a.letter, a.trace, t.total_shards is not null and %(payload)s::text is null as planned,
           exists (select 1 from headrace_core.units m where m.task_id = t.task_id and m.unit = -2) as merging,
           (select max(e.epoch) from headrace_core.units e where e.task_id = t.task_id) as epoch
    from unnest(%(letters)s::text[], %(tasks)s::uuid[], %(traces)s::text[]) as a (letter, task_id, trace)
    join headrace_core.units t on t.task_id = a.task_id and t.unit = -1 and t.state = 'FAILED'
), dropped as (
    delete from headrace_core.units u using chosen c
    where u.task_id = c.task_id and u.unit <> -1 and not c.planned
), reopened as (
    update headrace_core.units u
    set state = 'PENDING', reason = 'REDRIVEN', generation = t.generation + 1, due_at = now(), dispatch = u.dispatch + 1,
        published_in = null, published_seq = null, offered_at = now(), resumed = true, attempt = 0, failures = 0, crashes = 0,
        interruptions = 0, error = null, started_at = null, attempt_at = null, ended_at = null, updated_at = now(),
        deadline = coalesce(%(deadline)s::timestamptz, u.deadline)
    from chosen c join headrace_core.units t on t.task_id = c.task_id and t.unit = -1
    where u.task_id = c.task_id and c.planned and u.state in ('FAILED', 'CANCELLED')
      and case when c.merging then u.unit = -2 else u.unit >= 0 end
    returning u.task_id, u.unit, u.queue, u.priority, u.dispatch
), redriven as (
    update headrace_core.units t
    set state = case when c.planned then 'PROCESSING' else 'PENDING' end, reason = 'REDRIVEN', generation = t.generation + 1,
        sequence = t.sequence + case when c.planned then 2 else 1 end,
        due_at = now(), dispatch = t.dispatch + 1, published_in = null, published_seq = null, offered_at = now(), resumed = true,
        attempt = 0, failures = 0, crashes = 0, interruptions = 0, error = null, attempt_at = null, ended_at = null, updated_at = now(),
        started_at = case when c.planned then now() end, epoch = case when c.planned then t.epoch else c.epoch end,
        deadline = coalesce(%(deadline)s::timestamptz, t.deadline), message = '', failed_shards = 0,
        fraction = case when c.planned then t.done_shards::real / greatest(t.total_shards, 1) else 0 end,
        payload = coalesce(%(payload)s::json, t.payload),
        checkpoint = case when %(payload)s::text is null then t.checkpoint end,
        planned_at = case when c.planned then t.planned_at end,
        total_shards = case when c.planned then t.total_shards end,
        needed_shards = case when c.planned then t.needed_shards end,
        done_shards = case when c.planned then t.done_shards else 0 end,
        trace_context = coalesce(c.trace, t.trace_context)
    from chosen c
    where t.task_id = c.task_id and t.unit = -1
    returning t.task_id, t.sequence, t.generation, t.queue, t.priority, t.dispatch, c.planned, c.letter
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, reason)
    select task_id, sequence - planned::int, generation, -1, 0, 'state', 'PENDING', 'REDRIVEN' from redriven
    union all
    select task_id, sequence, generation, -1, 0, 'state', 'PROCESSING', 'REDRIVEN' from redriven where planned
), resolved as (
    update headrace_core.dead_letters d
    set resolved_at = now(), resolution = 'REDRIVEN', redrive_at = null
    from redriven r where d.id = r.letter
)
select task_id, -1 as unit, queue, priority, dispatch, sequence, planned from redriven
union all
select task_id, unit, queue, priority, dispatch, null, true from reopened;

-- name: discard
-- Closes open entries for good; their tasks, where there are any, are locked by this transaction and become CANCELLED.
with resolved as (
    update headrace_core.dead_letters d
    set resolved_at = now(), resolution = 'DISCARDED', redrive_at = null
    where d.id = any(%(letters)s) and d.resolved_at is null
    returning d.id, d.task_id, d.generation
), cancelled as (
    update headrace_core.units t
    set state = 'CANCELLED', reason = 'DISCARDED', ended_at = now(), updated_at = now(), sequence = t.sequence + 1
    from resolved r
    where t.task_id = r.task_id and t.unit = -1 and t.state = 'FAILED' and t.generation = r.generation
    returning t.task_id, t.sequence, t.generation
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, reason, terminal)
    select task_id, sequence, generation, -1, 0, 'state', 'CANCELLED', 'DISCARDED', true from cancelled
)
select r.id, c.task_id, c.sequence from resolved r left join cancelled c using (task_id);

-- name: schedule
-- A redrive with a rate: each entry gets its turn.
update headrace_core.dead_letters d
set redrive_at = now() + s.delay * interval '1 second', redrive_deadline = %(deadline)s
from unnest(%(letters)s::text[], %(delays)s::float8[]) as s (id, delay)
where d.id = s.id and d.resolved_at is null;

-- name: take_turns
-- Entries whose turn has come. Noting a later turn keeps other replicas away, and brings it back if this one dies.
update headrace_core.dead_letters d
set redrive_at = now() + interval '30 seconds'
from (
    select id from headrace_core.dead_letters
    where redrive_at <= now() and resolved_at is null
    order by redrive_at limit %(limit)s for update skip locked
) t
where d.id = t.id
returning d.id, d.task_id, d.generation, d.redrive_deadline;

-- name: give_turns_up
-- What cannot be redriven stays open, without a turn.
update headrace_core.dead_letters set redrive_at = null, redrive_deadline = null where id = any(%(letters)s);

-- name: take_unpublished
-- Open entries that are not in the DLQ stream yet, oldest first.
select id, task_id, generation, namespace, queue, kind, reason, error, budgets, created_at, published_at, resolved_at, resolution
from headrace_core.dead_letters
where published_at is null and resolved_at is null
order by created_at
limit %(limit)s;

-- name: mark_published
-- They are in the DLQ stream. One that was closed meanwhile is to be removed (again): its removal may have come first.
update headrace_core.dead_letters set published_at = now(), published_in = %(incarnation)s, removed_at = null
where id = any(%(letters)s) and published_at is null;

-- name: unmark_lost
-- Open entries of an earlier incarnation of the DLQ stream: they are not in this one.
update headrace_core.dead_letters d set published_at = null, published_in = null
from (
    select id from headrace_core.dead_letters
    where resolved_at is null and published_at is not null and coalesce(published_in, 0) < %(incarnation)s
    order by id limit %(limit)s for update skip locked
) l
where d.id = l.id
returning d.id;

-- name: unmark_published
update headrace_core.dead_letters set published_at = null, published_in = null
where id = any(%(letters)s) and resolved_at is null and published_at is not null
returning id;

-- name: count_published
select count(*) from headrace_core.dead_letters where resolved_at is null and published_at is not null;

-- name: list_published
select id from headrace_core.dead_letters
where resolved_at is null and published_at is not null and id > %(after)s
order by id limit %(limit)s;

-- name: find_open
select id from headrace_core.dead_letters where id = any(%(letters)s) and resolved_at is null;

-- name: take_unremoved
-- Closed entries that may still be in the DLQ stream. One that was never published has nothing to remove, except for what
-- was on its way: so all are asked for.
select id, queue from headrace_core.dead_letters
where resolved_at is not null and removed_at is null
order by resolved_at
limit %(limit)s;

-- name: mark_removed
-- They are gone from the DLQ stream.
update headrace_core.dead_letters set removed_at = now() where id = any(%(letters)s);

-- name: record_unparseable
-- A message on a task subject that was no task. Its id names the message, so a repeated delivery changes nothing.
insert into headrace_core.dead_letters (id, queue, reason, error, message)
values (%(id)s, %(queue)s, 'UNPARSEABLE_MESSAGE', %(error)s::json, %(message)s)
on conflict (id) do nothing;
