-- name: declare
-- Queues with the settings that headrace.toml gives them. A pause survives.
insert into headrace_core.queues (name, settings)
select name, settings::json from unnest(%(names)s::text[], %(settings)s::text[]) as d (name, settings)
order by name
on conflict (name) do update set settings = excluded.settings, updated_at = now()
where headrace_core.queues.settings::text is distinct from excluded.settings::text;

-- name: loads
-- What admission needs of every queue. Waiting are tasks that nobody has started: shards, merges and retries are `resumed`,
-- so that one huge task shuts nobody out. An index-only scan of up to `bound` entries; a queue in `uncounted` is spared it.
select q.name, q.settings, q.paused_at, coalesce(d.n, 0) as dead_letters,
       case when not q.name = any(%(uncounted)s::text[]) then (
           select count(*) from (
               select 1 from headrace_core.units u where u.queue = q.name and u.state = 'PENDING' and not u.resumed
               limit %(bound)s
           ) as counted
       ) end as waiting
from headrace_core.queues q
left join (
    select queue, count(*) as n from headrace_core.dead_letters where resolved_at is null group by queue
) d on d.queue = q.name
order by q.name;

-- name: figures
-- What people ask about queues: all of them, or one.
select q.name, q.settings, q.paused_at, p.backlog, p.delayed, p.oldest,
       (select count(*) from headrace_core.units u
        where u.queue = q.name and u.state = 'PROCESSING' and u.unit = -1) as in_flight,
       (select count(*) from headrace_core.dead_letters d
        where d.queue = q.name and d.resolved_at is null) as dead_letters
from headrace_core.queues q
cross join lateral (
    select count(*) filter (where u.due_at <= now()) as backlog, count(*) filter (where u.due_at > now()) as delayed,
           extract(epoch from now() - min(u.due_at))::float8 as oldest
    from headrace_core.units u
    where u.queue = q.name and u.state = 'PENDING'
) p
where %(name)s::text is null or q.name = %(name)s
order by q.name;

-- name: rates
-- Tasks accepted and ended within the last minute, by queue. Ids sort by time: the accepted ones are a range of the primary
-- key from `since`, an id of a minute ago. Of more than `sample` the newest are counted, over the time that they took: a
-- minute of a busy system is a million rows.
with accepted as (
    select queue, created_at from headrace_core.units
    where unit = -1 and task_id >= %(since)s
    order by task_id desc limit %(sample)s
), ended as (
    select queue, ended_at from (
        (select queue, ended_at from headrace_core.units
         where unit = -1 and ended_at is not null and state <> 'FAILED' and ended_at > now() - interval '1 minute'
         order by ended_at desc limit %(sample)s)
        union all
        (select queue, ended_at from headrace_core.units
         where unit = -1 and ended_at is not null and state = 'FAILED' and ended_at > now() - interval '1 minute'
         order by ended_at desc limit %(sample)s)
    ) as both_ends order by ended_at desc limit %(sample)s
), spans as (
    select (select case when count(*) < %(sample)s then 60 else extract(epoch from now() - min(created_at)) end from accepted)
               as accepting,
           (select case when count(*) < %(sample)s then 60 else extract(epoch from now() - min(ended_at)) end from ended)
               as ending
)
select q.name,
       (select count(*) from accepted a where a.queue = q.name) / greatest(s.accepting, 0.001)::float8 as submit_rate,
       (select count(*) from ended e where e.queue = q.name) / greatest(s.ending, 0.001)::float8 as finish_rate
from headrace_core.queues q, spans s
where %(name)s::text is null or q.name = %(name)s;

-- name: pause
-- Nothing more of this queue is claimed or published. Keeps the time of the first pause.
update headrace_core.queues set paused_at = coalesce(paused_at, now()) where name = %(name)s returning paused_at;

-- name: resume
-- What was delivered during the pause was put back unpublished; the sweep of the relay finds it.
update headrace_core.queues set paused_at = null where name = %(name)s returning paused_at;

-- name: lock_pause
-- As it is before a pause or its end; nobody changes it in between.
select paused_at from headrace_core.queues where name = %(name)s for update;

-- name: waiting_of
-- Tasks of some namespaces that nobody has started: `resumed` are shards, merges and retries.
select namespace, count(*) as waiting from headrace_core.units
where state = 'PENDING' and not resumed and namespace = any(%(namespaces)s)
group by namespace;

-- name: waiting
-- Some waiting tasks of a queue that existed at `before`, locked. Skips what somebody holds: that is being
-- started.
select task_id from headrace_core.units
where queue = %(queue)s and state = 'PENDING' and unit = -1 and created_at <= %(before)s
limit %(limit)s
for update skip locked;

-- name: waiting_still
-- The last look: waits for whoever holds a row, since not everybody who locks one starts it.
select task_id from headrace_core.units
where queue = %(queue)s and state = 'PENDING' and unit = -1 and created_at <= %(before)s
order by task_id
limit %(limit)s
for update;
