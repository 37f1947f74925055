-- name: take_unpublished
-- The outbox: units that are due and not known to be in the stream. Taking notes the try, so that another replica, or the
-- next round, leaves them alone for the grace period; a crash after this costs that much latency and nothing else.
-- Each subject's oldest, by turns: one of which a million wait must not hold up the others.
with subjects as (
    select q.name as queue, l.level
    from headrace_core.queues q
    cross join (values (0, 'resume'), (1, 'low'), (2, 'normal'), (3, 'high')) as l (level, name)
    where q.paused_at is null and not (q.name || '.' || l.name = any(%(full)s))
), oldest as (
    select c.task_id, c.unit, row_number() over (partition by s.queue, s.level order by c.due_at) as turn
    from subjects s
    cross join lateral (
        (select u.task_id, u.unit, u.due_at
         from headrace_core.units u
         where u.state = 'PENDING' and u.published_in is null and u.due_at <= now()
           and u.queue = s.queue and (case when u.resumed then 0 else u.priority end) = s.level
           and coalesce(u.offered_at, '-infinity') = '-infinity'
         order by u.due_at
         limit %(limit)s)
        union all
        (select u.task_id, u.unit, u.due_at
         from headrace_core.units u
         where u.state = 'PENDING' and u.published_in is null and u.due_at <= now()
           and u.queue = s.queue and (case when u.resumed then 0 else u.priority end) = s.level
           and coalesce(u.offered_at, '-infinity') > '-infinity'
           and coalesce(u.offered_at, '-infinity') < now() - %(grace)s * interval '1 second'
         order by coalesce(u.offered_at, '-infinity')
         limit %(limit)s)
    ) c
    order by turn
    limit %(limit)s
), ordered as (
    select task_id, unit from oldest order by task_id, unit
), due as (
    -- One look-up by the primary key for each. As long as a new table has no statistics, a join would be planned the other
    -- way round and, with the condition in plain words, by the partial index: a minute with 100,000 waiting.
    select l.task_id, l.unit
    from ordered o
    cross join lateral (
        select u.task_id, u.unit
        from headrace_core.units u
        where u.task_id = o.task_id and u.unit = o.unit and case when u.published_in is null then u.state end = 'PENDING'
          and (u.offered_at is null or u.offered_at < now() - %(grace)s * interval '1 second')
        for update of u skip locked
    ) l
)
update headrace_core.units u set offered_at = now()
from due d
where u.task_id = d.task_id and u.unit = d.unit
returning u.task_id, u.unit, u.queue, u.priority, u.resumed, u.dispatch, u.trace_context,
    extract(epoch from now() - u.due_at)::float8 as waited;

-- name: mark_published
-- The stream has them, in this incarnation and at these sequences. What has been claimed meanwhile needs no mark, and a
-- later dispatch is another publication.
with sent as (
    select l.task_id, l.unit, s.sequence
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(dispatches)b::int[], %(sequences)b::int8[])
        as s (task_id, unit, dispatch, sequence)
    cross join lateral (
        select u.task_id, u.unit
        from headrace_core.units u
        where u.task_id = s.task_id and u.unit = s.unit and u.dispatch = s.dispatch
          and case when u.published_in is null then u.state end = 'PENDING'
        for update of u skip locked
    ) l
)
update headrace_core.units u set published_in = %(incarnation)s, published_seq = s.sequence
from sent s
where u.task_id = s.task_id and u.unit = s.unit;
