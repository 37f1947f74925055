-- name: known
-- What was last noted of a stream.
select created, incarnation from headrace_core.streams where name = %(name)s;

-- name: enter
-- Make sure that the stream has a row to lock.
insert into headrace_core.streams (name, created) values (%(name)s, '') on conflict (name) do nothing;

-- name: lock
select created, incarnation from headrace_core.streams where name = %(name)s for update;

-- name: note
-- The stream of this name is another one than before.
update headrace_core.streams set created = %(created)s, incarnation = incarnation + 1, seen_at = now()
where name = %(name)s
returning incarnation;
