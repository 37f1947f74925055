-- What consumers say about themselves: the kinds that they run, that they live, how their inference back end is.

-- name: register
-- Kinds with their schemas; seeing one again keeps it. In the order of the key: consumers start together.
insert into headrace_core.kinds (kind, schema_hash, schema, queue, sharded)
select kind, schema_hash, schema::json, queue, sharded
from unnest(%(kinds)s::text[], %(hashes)s::text[], %(schemas)s::text[], %(queues)s::text[], %(sharded)s::bool[])
    as k (kind, schema_hash, schema, queue, sharded)
order by kind, schema_hash
on conflict (kind, schema_hash) do update
set queue = excluded.queue, sharded = excluded.sharded, seen_at = now();

-- name: read
-- The registrations that are alive, the last seen of each kind last.
select kind, schema_hash, schema, queue, sharded
from headrace_core.kinds
where seen_at > now() - %(days)s * interval '1 day'
order by kind, seen_at, schema_hash;

-- name: undeclared
-- Which of these queues nobody has declared.
select name from unnest(%(names)s::text[]) as n (name)
where not exists (select 1 from headrace_core.queues q where q.name = n.name)
order by name;

-- name: upsert_consumer
-- A sign of life of a consumer process.
insert into headrace_core.consumers (holder, worker, kinds, queues, draining, running, mode)
values (%(holder)s, %(worker)s, %(kinds)s, %(queues)s, %(draining)s, %(running)s, %(mode)s)
on conflict (holder) do update
set kinds = excluded.kinds, queues = excluded.queues, draining = excluded.draining, running = excluded.running,
    mode = excluded.mode, seen_at = now(), died_at = null;

-- name: remove_consumer
-- A consumer that has ended in good order; on the way out those that have been silent for a day.
delete from headrace_core.consumers where holder = %(holder)s or seen_at < now() - interval '1 day';

-- name: live_consumers
-- Consumers that have given a sign of life lately.
select holder, worker, kinds, queues, started_at, seen_at, draining, running, mode
from headrace_core.consumers
where seen_at > now() - %(within)s * interval '1 second' and died_at is null
order by worker, holder;

-- name: write_inference
-- What a consumer of ai.analyze has just seen of its inference back end.
insert into headrace_core.inference (health, checked_at) values (%(health)s::json, now())
on conflict (singleton) do update set health = excluded.health, checked_at = excluded.checked_at;

-- name: read_inference
select health, checked_at from headrace_core.inference;
