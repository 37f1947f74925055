-- name: insert_tasks
-- Accept tasks, each with its first event. A key or an id that is known already is skipped: read it back afterwards.
-- Ordered by key: two batches that share keys meet in one order.
with asked as (
    -- What most tasks do not have comes as an empty array: unnest fills it up with nulls.
    select a.*, s.* from unnest(
        %(ids)b::uuid[], %(payloads)b::text[], %(fingerprints)b::bytea[], %(shapes)b::int[], %(keys)b::text[], %(labels)b::text[],
        %(run_ats)b::timestamptz[], %(deadlines)b::timestamptz[], %(traces)b::text[]
    ) as a (id, payload, fingerprint, shape, key, labels, run_at, deadline, trace)
    join unnest(
        %(namespaces)b::text[], %(kinds)b::text[], %(queues)b::text[], %(priorities)b::int[], %(max_attempts)b::int[],
        %(max_crashes)b::int[]
    ) with ordinality as s (namespace, kind, queue, priority, max_attempts, max_crashes, number) on s.number = a.shape
), inserted as (
    insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, fingerprint, idempotency_key,
        labels, run_at, deadline, max_attempts, max_crashes, sequence, due_at, offered_at, trace_context)
    select id, -1, namespace, kind, queue, priority, payload::json, fingerprint, key, coalesce(labels, '{}')::jsonb, run_at, deadline,
        max_attempts, max_crashes, 1, greatest(run_at, now()), case when run_at > now() then null else now() end, trace
    from asked order by namespace, key, id
    on conflict do nothing
    returning task_id, due_at, created_at
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, due_at)
    select task_id, 1, 1, -1, 0, 'state', 'PENDING', nullif(due_at, created_at) from inserted
)
select task_id, due_at, created_at from inserted;

-- name: read_back
-- The tasks that stood in the way, by key where there is one. A later statement than the insert: the insert's own
-- snapshot does not see what it collided with.
-- `confirmed`: a commit whose wait for a synchronous standby was cut short is seen here, and perhaps not there. A record behind
-- it in the log, and the wait of our own commit for that, make the answer as durable as the first one would have been.
with confirmed as materialized (
    select case when current_setting('synchronous_standby_names') <> '' then pg_logical_emit_message(true, 'headrace', '') end
), asked as (
    select * from unnest(%(ids)b::uuid[], %(namespaces)b::text[], %(keys)b::text[]) as a (id, namespace, key)
), found as (
    select a.id as asked_id, u.task_id, u.fingerprint
    from asked a join headrace_core.units u on u.namespace = a.namespace and u.idempotency_key = a.key where a.key is not null
    union all
    select a.id, u.task_id, u.fingerprint
    from asked a join headrace_core.units u on u.task_id = a.id and u.unit = -1 where a.key is null
)
select f.asked_id, f.fingerprint, r.*, confirmed.*
from found f join headrace_core.task_records r on r.id = f.task_id cross join confirmed;

-- name: find_by_key
-- A task by its idempotency key, with the fingerprint of the request that brought it. `confirmed` as in read_back.
with confirmed as materialized (
    select case when current_setting('synchronous_standby_names') <> '' then pg_logical_emit_message(true, 'headrace', '') end
)
select u.fingerprint, r.*, confirmed.*
from headrace_core.units u join headrace_core.task_records r on r.id = u.task_id cross join confirmed
where u.namespace = %(namespace)s and u.idempotency_key = %(key)s;
