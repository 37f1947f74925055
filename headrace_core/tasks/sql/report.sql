-- name: report
-- Progress and output of running units. The task's row gives the sequences, in the order of the batch, and only to reports
-- whose lease still holds. Runs after lock_tasks.
with asked as (
    select * from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(types)b::text[],
        %(fractions)b::float8[], %(texts)b::text[], %(offsets)b::int8[])
        with ordinality as a (task_id, unit, epoch, holder, type, fraction, text, byte_offset, position)
), valid as (
    select a.*, u.attempt, u.generation, u.kind
    from asked a
    cross join lateral (
        select u.attempt, u.generation, u.kind
        from headrace_core.units u
        where u.task_id = a.task_id and u.unit = a.unit and u.holder = a.holder
          and case when u.state = 'PROCESSING' then u.epoch end = a.epoch
    ) u
), counted as (
    -- The reports of a task travel through its update, which numbers them: no join of one result with another.
    select task_id, -1 as unit, count(*) as n,
        (array_agg(fraction order by position desc) filter (where type = 'progress' and unit = -1))[1] as fraction,
        (array_agg(text order by position desc) filter (where type = 'progress' and unit = -1))[1] as message,
        array_agg(generation order by position) as generations, array_agg(unit order by position) as units,
        array_agg(kind order by position) as kinds, array_agg(attempt order by position) as attempts,
        array_agg(type order by position) as types, array_agg(fraction order by position) as fractions,
        array_agg(text order by position) as texts, array_agg(byte_offset order by position) as offsets
    from valid group by task_id
), tasks as (
    update headrace_core.units t
    set sequence = t.sequence + c.n, updated_at = now(), fraction = coalesce(c.fraction, t.fraction),
        message = coalesce(c.message, t.message)
    from counted c
    where t.task_id = c.task_id and t.unit = c.unit
    returning t.task_id, t.sequence, t.sequence - c.n as before, t.done_shards, t.total_shards,
        c.generations, c.units, c.kinds, c.attempts, c.types, c.fractions, c.texts, c.offsets
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, plan, attempt, type, fraction, text, byte_offset, done, total)
    select t.task_id, t.before + r.n, r.generation, r.unit, r.unit = -1 and r.kind = any(%(sharded)s), r.attempt, r.type,
        case when r.type = 'progress' then r.fraction end, r.text, case when r.type = 'output' then r.byte_offset end,
        t.done_shards, coalesce(t.total_shards, 0)
    from tasks t
    cross join lateral unnest(t.generations, t.units, t.kinds, t.attempts, t.types, t.fractions, t.texts, t.offsets)
        with ordinality as r (generation, unit, kind, attempt, type, fraction, text, byte_offset, n)
)
select task_id, sequence from tasks;
