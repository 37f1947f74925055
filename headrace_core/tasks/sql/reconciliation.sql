-- name: doubtful
-- Waiting units whose message was noted in the stream and may not be there: published into an earlier incarnation, or at a
-- sequence that the durable of their subject has passed. Read from the index in the order of the stream; with nothing lost
-- that is a handful of rows, however many wait behind them.
with durables as (
    select * from unnest(%(queues)s::text[], %(levels)s::int[], %(passed)s::int8[]) as d (queue, level, passed)
)
select f.task_id, f.unit, f.dispatch, f.published_in, f.published_seq, d.queue, d.level
from durables d
cross join lateral (
    (select u.task_id, u.unit, u.dispatch, u.published_in, u.published_seq from headrace_core.units u
     where u.state = 'PENDING' and u.queue = d.queue and (case when u.resumed then 0 else u.priority end) = d.level
       and u.published_in is not null and u.published_in < %(incarnation)s
     limit %(limit)s)
    union all
    (select u.task_id, u.unit, u.dispatch, u.published_in, u.published_seq from headrace_core.units u
     where u.state = 'PENDING' and u.queue = d.queue and (case when u.resumed then 0 else u.priority end) = d.level
       and u.published_in is not null and u.published_in = %(incarnation)s and u.published_seq <= d.passed
     order by u.published_seq
     limit %(limit)s)
) f;

-- name: published_at
-- The waiting unit whose message is the one at this sequence.
select u.task_id, u.unit, u.dispatch, u.published_in, u.published_seq, u.queue, %(level)s::int as level
from headrace_core.units u
where u.state = 'PENDING' and u.queue = %(queue)s and (case when u.resumed then 0 else u.priority end) = %(level)s::int
  and u.published_in is not null and u.published_in = %(incarnation)s and u.published_seq = %(sequence)s;

-- name: publish_again
-- Give lost publications a new dispatch number, each once: whoever else saw the same loss finds another dispatch.
with lost as (
    select u.task_id, u.unit
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(dispatches)b::int[]) as l (task_id, unit, dispatch)
    cross join lateral (
        select u.task_id, u.unit
        from headrace_core.units u
        where u.task_id = l.task_id and u.unit = l.unit and u.dispatch = l.dispatch
          and case when u.published_in is not null then u.state end = 'PENDING'
        for update of u skip locked
    ) u
)
update headrace_core.units u
set dispatch = u.dispatch + 1, published_in = null, published_seq = null, offered_at = now()
from lost l
where u.task_id = l.task_id and u.unit = l.unit
returning u.task_id, u.unit, u.queue, u.priority, u.resumed, u.dispatch;

-- name: without_merge
-- Tasks whose shards are done and whose merge is missing. No statement of ours leaves one behind.
select t.task_id from headrace_core.units t
where t.unit = -1 and t.state = 'PROCESSING' and t.holder is null and t.planned_at is not null
  and t.done_shards >= t.needed_shards
  and not exists (select 1 from headrace_core.units m where m.task_id = t.task_id and m.unit = -2)
limit %(limit)s;
