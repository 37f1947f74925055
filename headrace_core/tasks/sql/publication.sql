-- name: take_unpublished
-- The outbox: units that are due and not known to be in the stream. Taking notes the try, so that another replica, or the
-- next round, leaves them alone for the grace period; a crash after this costs that much latency and nothing else.
with due as (
    select u.task_id, u.unit
    from headrace_core.units u
    where u.state = 'PENDING' and u.published_at is null and u.due_at <= now()
      and (u.offered_at is null or u.offered_at < now() - %(grace)s * interval '1 second')
      and not (u.queue || '.' || case when u.resumed then 'resume' else (array['low', 'normal', 'high'])[u.priority] end = any(%(full)s))
      and not exists (select 1 from headrace_core.queues q where q.name = u.queue and q.paused_at is not null)
    order by u.due_at
    limit %(limit)s
    for update of u skip locked
)
update headrace_core.units u set offered_at = now()
from due d
where u.task_id = d.task_id and u.unit = d.unit
returning u.task_id, u.unit, u.queue, u.priority, u.resumed, u.dispatch;

-- name: mark_published
-- The stream has them. What has been claimed meanwhile needs no mark, and a later dispatch is another publication.
with sent as (
    select u.task_id, u.unit
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(dispatches)b::int[]) as s (task_id, unit, dispatch)
    join headrace_core.units u on u.task_id = s.task_id and u.unit = s.unit
    where u.state = 'PENDING' and u.published_at is null and u.dispatch = s.dispatch
    order by u.task_id, u.unit
    for update of u skip locked
)
update headrace_core.units u set published_at = now()
from sent s
where u.task_id = s.task_id and u.unit = s.unit;
