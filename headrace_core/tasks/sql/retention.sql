-- What is kept no longer. Every statement is bounded, and none waits for a row that somebody else holds.

-- name: lock_timeout
-- For what is locked as a whole, by a migration say: this transaction gives way.
select set_config('lock_timeout', %(milliseconds)s || 'ms', true);

-- name: lock_ended
-- Tasks that ended long enough ago, the oldest first, from `after` on. FAILED ones are never among them.
select task_id, ended_at, coalesce(total_shards, 0) + 2 as units
from headrace_core.units
where unit = -1 and ended_at is not null and state <> 'FAILED'
  and ended_at >= coalesce(%(after)s::timestamptz, '-infinity') and ended_at < now() - %(age)s * interval '1 second'
order by ended_at
limit %(limit)s
for update skip locked;

-- name: remove_events
-- Up to `limit` events of these tasks.
delete from headrace_core.events
where ctid = any(array(select ctid from headrace_core.events where task_id = any(%(tasks)b::uuid[]) limit %(limit)s));

-- name: remove_attempts
-- Up to `limit` attempts of these tasks.
delete from headrace_core.attempts
where ctid = any(array(select ctid from headrace_core.attempts where task_id = any(%(tasks)b::uuid[]) limit %(limit)s));

-- name: remove_letters_of
-- The closed dead letters of these tasks. None of them has an open one: it would be FAILED.
delete from headrace_core.dead_letters where task_id = any(%(tasks)b::uuid[]) and resolved_at is not null;

-- name: remove_units
-- These tasks, with their shards and merges.
delete from headrace_core.units where task_id = any(%(tasks)b::uuid[]);

-- name: take_turn
-- How far the events have been removed. Nothing where another replica has the turn.
select events_until from headrace_core.retention for update skip locked;

-- name: ended_after
-- Tasks whose events are next. Those that ended at one moment stay together, so that the moment says how far we are.
select task_id, ended_at
from headrace_core.units
where unit = -1 and ended_at is not null and state <> 'FAILED'
  and ended_at > coalesce(%(until)s::timestamptz, '-infinity') and ended_at < now() - %(age)s * interval '1 second'
order by ended_at
fetch first %(limit)s rows with ties;

-- name: note_events_until
update headrace_core.retention set events_until = %(until)s;

-- name: remove_audit
-- Up to `limit` records of what operators did long ago, the oldest first.
delete from headrace_core.audit
where ctid = any(array(
    select ctid from headrace_core.audit where at < now() - %(age)s * interval '1 second'
    order by at limit %(limit)s for update skip locked
));

-- name: remove_letters
-- Up to `limit` closed dead letters of messages that were no tasks.
delete from headrace_core.dead_letters
where ctid = any(array(
    select ctid from headrace_core.dead_letters
    where task_id is null and resolved_at is not null and resolved_at < now() - %(age)s * interval '1 second'
    limit %(limit)s for update skip locked
));
