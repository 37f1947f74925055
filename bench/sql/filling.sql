-- name: finished
-- Tasks that ended over the last 30 days, oldest first, so that their ids (UUIDv7) and times agree. Only some have events.
with made as (
    select uuidv7(t.age) as id, now() + t.age as at, md5(n::text)::uuid::text as key,
        json_build_object('number', n, 'text', repeat('headrace ', 19)) as payload
    from generate_series(%(first)s::int, %(last)s::int) as n,
        lateral (select -interval '30 days' * (1 - n / %(of)s::float8) as age) as t
), inserted as (
    insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, state, payload, result, fingerprint,
        idempotency_key, max_attempts, max_crashes, sequence, epoch, attempt, fraction, worker, resumed, due_at, created_at,
        updated_at, started_at, attempt_at, ended_at)
    select id, -1, 'default', 'echo', 'default', 2, 'COMPLETED', payload, payload, decode(md5(key), 'hex'),
        key, 3, 3, 3, 1, 1, 1, 'bench', true, at, at, at, at, at, at
    from made
    returning task_id, created_at
)
insert into headrace_core.events (task_id, sequence, generation, unit, attempt, at, type, state, terminal)
select task_id, s.sequence, 1, -1, least(s.sequence - 1, 1), created_at, 'state', s.state, s.sequence = 3
from inserted, (values (1, 'PENDING'), (2, 'PROCESSING'), (3, 'COMPLETED')) as s (sequence, state)
where %(events)s;

-- name: waiting
-- Tasks that were accepted just now and not published yet.
with inserted as (
    insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, fingerprint, idempotency_key,
        max_attempts, max_crashes, sequence, due_at)
    select uuidv7(), -1, 'default', 'echo', 'default', 2, json_build_object('number', n, 'text', repeat('headrace ', 19)),
        decode(md5(n::text), 'hex'), 'w' || md5(n::text), 3, 3, 1, now()
    from generate_series(%(first)s::int, %(last)s::int) as n
    returning task_id
)
insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state)
select task_id, 1, 1, -1, 0, 'state', 'PENDING' from inserted;

-- name: some
select task_id::text from headrace_core.units tablesample system (1) where unit = -1 limit %(limit)s;

-- name: published
select count(*) from headrace_core.units where queue = 'default' and state = 'PENDING' and published_in is not null;

-- name: ended
-- How many have ended since then, and since the newest consumer started, and how many a second.
select count(*), coalesce(count(*) / nullif(extract(epoch from max(ended_at) - to_timestamp(%(since)s)), 0), 0)::float8
from headrace_core.units
where unit = -1 and ended_at is not null and state <> 'FAILED'
  and ended_at > greatest(to_timestamp(%(since)s), (select max(started_at) from headrace_core.consumers));
