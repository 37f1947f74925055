-- Everything that only looks. Ids are UUIDv7: their order is the order of creation, and the primary key serves it.

-- name: records
-- The basic view of tasks, in no order.
select * from headrace_core.task_records where id = any(%(ids)b::uuid[]);

-- name: positions
-- Where tasks stand, and no more.
select task_id, sequence, state, namespace from headrace_core.units where unit = -1 and task_id = any(%(ids)b::uuid[]);

-- name: bodies
-- What the full view adds to a task's row.
select payload, result from headrace_core.units where task_id = %(id)s and unit = -1;

-- name: attempts
-- The latest attempts of every unit of a task, newest first.
select unit_type, shard_index, generation, attempt, epoch, worker, started_at, ended_at, outcome, error
from headrace.attempts
where task_id = %(id)s
order by started_at desc nulls first, epoch desc
limit %(limit)s;

-- name: shards
-- The shards of a task, in plan order.
select unit as index, state, reason, attempt, failures, crashes, interruptions, max_attempts, max_crashes, worker, started_at,
       ended_at, error
from headrace_core.units
where task_id = %(id)s and unit >= 0
order by unit
limit %(limit)s;

-- name: list_tasks
-- A page of tasks, newest first. `floor` and `before` bound the ids, so that a window in time reads no more than itself.
-- The states one by one: each that is asked for brings its partial index, so that a few waiting or failed tasks are found
-- among millions that completed.
select *
from headrace_core.task_records
where id < %(before)s and id >= %(floor)s
  and (%(namespace)s::text is null or namespace = %(namespace)s)
  and (%(within)s::text[] is null or namespace = any(%(within)s))
  and (%(kind)s::text is null or kind = %(kind)s)
  and (%(queue)s::text is null or queue = %(queue)s)
  and (%(states)s::text[] is null
       or state = 'PENDING' and 'PENDING' = any(%(states)s) or state = 'PROCESSING' and 'PROCESSING' = any(%(states)s)
       or state = 'FAILED' and 'FAILED' = any(%(states)s) or state = 'COMPLETED' and 'COMPLETED' = any(%(states)s)
       or state = 'CANCELLED' and 'CANCELLED' = any(%(states)s) or state = 'EXPIRED' and 'EXPIRED' = any(%(states)s))
  and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
  and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
order by id desc
limit %(limit)s;

-- name: list_tasks_by_labels
-- The same, with labels. `labels <> '{}'` follows from the other condition; the planner needs it to use the partial index.
select *
from headrace_core.task_records
where id < %(before)s and id >= %(floor)s
  and labels @> %(labels)s::jsonb and labels <> '{}'
  and (%(namespace)s::text is null or namespace = %(namespace)s)
  and (%(within)s::text[] is null or namespace = any(%(within)s))
  and (%(kind)s::text is null or kind = %(kind)s)
  and (%(queue)s::text is null or queue = %(queue)s)
  and (%(states)s::text[] is null
       or state = 'PENDING' and 'PENDING' = any(%(states)s) or state = 'PROCESSING' and 'PROCESSING' = any(%(states)s)
       or state = 'FAILED' and 'FAILED' = any(%(states)s) or state = 'COMPLETED' and 'COMPLETED' = any(%(states)s)
       or state = 'CANCELLED' and 'CANCELLED' = any(%(states)s) or state = 'EXPIRED' and 'EXPIRED' = any(%(states)s))
  and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
  and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
order by id desc
limit %(limit)s;

-- name: matching_of
-- Which of these tasks match a filter, and where they stand.
select task_id, sequence, state, namespace
from headrace_core.units
where unit = -1 and task_id = any(%(ids)b::uuid[])
  and labels @> %(labels)s::jsonb
  and (%(namespace)s::text is null or namespace = %(namespace)s)
  and (%(within)s::text[] is null or namespace = any(%(within)s))
  and (%(kind)s::text is null or kind = %(kind)s)
  and (%(queue)s::text is null or queue = %(queue)s)
  and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
  and (%(created_before)s::timestamptz is null or created_at < %(created_before)s);

-- name: recent_matching
-- Tasks that match a filter and were created in the last `seconds`, and where they stand, newest first. `floor` bounds the
-- ids, so that no more than that is read.
select task_id, sequence, state, namespace
from headrace_core.units
where unit = -1 and task_id >= %(floor)s and created_at >= now() - make_interval(secs => %(seconds)s)
  and labels @> %(labels)s::jsonb
  and (%(namespace)s::text is null or namespace = %(namespace)s)
  and (%(within)s::text[] is null or namespace = any(%(within)s))
  and (%(kind)s::text is null or kind = %(kind)s)
  and (%(queue)s::text is null or queue = %(queue)s)
  and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
  and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
order by task_id desc
limit %(limit)s;

-- name: ended_matching
-- Tasks that match a filter and ended at a time or later, the newest first. FAILED has an index of its own.
select task_id, sequence, state, namespace from (
    (select task_id, sequence, state, namespace, ended_at from headrace_core.units
    where unit = -1 and ended_at is not null and state <> 'FAILED' and ended_at >= %(since)s
      and labels @> %(labels)s::jsonb
      and (%(namespace)s::text is null or namespace = %(namespace)s)
      and (%(within)s::text[] is null or namespace = any(%(within)s))
      and (%(kind)s::text is null or kind = %(kind)s)
      and (%(queue)s::text is null or queue = %(queue)s)
      and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
      and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
    order by ended_at desc limit %(limit)s)
    union all
    (select task_id, sequence, state, namespace, ended_at from headrace_core.units
    where unit = -1 and ended_at is not null and state = 'FAILED' and ended_at >= %(since)s
      and labels @> %(labels)s::jsonb
      and (%(namespace)s::text is null or namespace = %(namespace)s)
      and (%(within)s::text[] is null or namespace = any(%(within)s))
      and (%(kind)s::text is null or kind = %(kind)s)
      and (%(queue)s::text is null or queue = %(queue)s)
      and (%(created_after)s::timestamptz is null or created_at >= %(created_after)s)
      and (%(created_before)s::timestamptz is null or created_at < %(created_before)s)
    order by ended_at desc limit %(limit)s)
) as ended
order by ended_at desc
limit %(limit)s;

-- name: force_custom_plan
-- A filter's optional conditions vanish only from a plan made for their values.
select set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: events
-- Events after a sequence, for many tasks at once: task by task in the order asked, each from its oldest, at most
-- `per_task` of one and `limit` in all.
select e.*
from unnest(%(ids)b::uuid[], %(afters)b::int8[]) with ordinality as c (task_id, after, position)
cross join lateral (
    select * from headrace_core.events e
    where e.task_id = c.task_id and e.sequence > c.after
    order by e.sequence
    limit %(per_task)s
) e
order by c.position, e.sequence
limit %(limit)s;

-- name: has_schema
-- Does Postgres answer, and has it been migrated at all.
select to_regclass('headrace_core.events') is not null and to_regclass('headrace.tasks') is not null as found;
