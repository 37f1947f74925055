-- name: work
-- What every queue asks of consumers, seen at one moment: counted in two statements, a unit on its way from waiting to held
-- could be in neither. Due units are counted up to `bound`. In the index of what waits, the due ones of one `resumed` and
-- one priority are a range of their own: whatever is delayed behind them costs nothing. The order is the index's: with it the
-- range is walked up to the bound; without it the whole of it is read into a bitmap first.
with ranges (resumed, priority) as (
    values (true, 3::smallint), (true, 2), (true, 1), (false, 3), (false, 2), (false, 1)
)
select q.name, q.paused_at is not null as paused, 0 as held,
       (select count(*) from (
            select 1 from ranges r cross join lateral (
                select 1 from headrace_core.units u
                where u.queue = q.name and u.state = 'PENDING' and u.resumed = r.resumed and u.priority = r.priority
                      and u.due_at <= now()
                order by u.due_at limit %(bound)s
            ) as due
            limit %(bound)s
        ) as counted) as waiting,
       (select extract(epoch from now() - min(first.due_at))::float8 from ranges r cross join lateral (
            select u.due_at from headrace_core.units u
            where u.queue = q.name and u.state = 'PENDING' and u.resumed = r.resumed and u.priority = r.priority
                  and u.due_at <= now()
            order by u.due_at limit 1
        ) as first) as oldest,
       (select true from headrace_core.units u
        where u.queue = q.name and u.state = 'PROCESSING' and u.unit = -1 limit 1) is not null as processing
from headrace_core.queues q
union all
select u.queue, null, count(*), 0, null, null
from headrace_core.units u
where u.state = 'PROCESSING' and u.holder is not null
group by u.queue;

-- name: active
-- Which queues need a consumer at all. A held unit's task is PROCESSING, so what is held need not be looked for.
with ranges (resumed, priority) as (
    values (true, 3::smallint), (true, 2), (true, 1), (false, 3), (false, 2), (false, 1)
)
select q.name,
       (select true from headrace_core.units u
        where u.queue = q.name and u.state = 'PROCESSING' and u.unit = -1 limit 1) is not null
       or (q.paused_at is null and (
            select true from ranges r cross join lateral (
                select 1 from headrace_core.units u
                where u.queue = q.name and u.state = 'PENDING' and u.resumed = r.resumed and u.priority = r.priority
                      and u.due_at <= now()
                order by u.due_at limit 1
            ) as due
            limit 1
       ) is not null) as active
from headrace_core.queues q;
