-- name: report
-- Progress and output of running units. The task's row gives the sequences, in the order of the batch, and only to reports
-- whose lease still holds. Runs after lock_tasks.
with asked as (
    select * from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[], %(types)b::text[],
        %(fractions)b::float8[], %(texts)b::text[], %(offsets)b::int8[])
        with ordinality as a (task_id, unit, epoch, holder, type, fraction, text, byte_offset, position)
), valid as (
    select a.*, u.attempt, u.generation, row_number() over (partition by a.task_id order by a.position) as n
    from asked a
    join headrace_core.units u on u.task_id = a.task_id and u.unit = a.unit
        and u.state = 'PROCESSING' and u.epoch = a.epoch and u.holder = a.holder
), latest as (
    select distinct on (task_id) task_id, fraction, text from valid
    where type = 'progress' and unit = -1 order by task_id, position desc
), counted as (
    select v.task_id, count(*) as n, max(l.fraction) as fraction, max(l.text) as message
    from valid v left join latest l using (task_id) group by v.task_id
), tasks as (
    update headrace_core.units t
    set sequence = t.sequence + c.n, updated_at = now(), fraction = coalesce(c.fraction, t.fraction),
        message = coalesce(c.message, t.message)
    from counted c
    where t.task_id = c.task_id and t.unit = -1
    returning t.task_id, t.sequence, t.sequence - c.n as before, t.done_shards, t.total_shards
), logged as (
    insert into headrace_core.events (task_id, sequence, generation, unit, plan, attempt, type, fraction, text, byte_offset, done, total)
    select v.task_id, t.before + v.n, v.generation, v.unit, v.unit = -1 and u.kind = any(%(sharded)s), v.attempt, v.type,
        case when v.type = 'progress' then v.fraction end, v.text, case when v.type = 'output' then v.byte_offset end,
        t.done_shards, coalesce(t.total_shards, 0)
    from valid v join tasks t using (task_id) join headrace_core.units u on u.task_id = v.task_id and u.unit = v.unit
)
select task_id, sequence from tasks;
