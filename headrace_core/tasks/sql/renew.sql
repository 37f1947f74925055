-- By primary key, whatever the statistics say: settle.sql explains the words of these conditions.

-- name: renew
-- Renew leases, one row for each that is still held. What is missing has been lost. It waits for no lock: a settlement has
-- locked its tasks before its shards, so whoever waited here could hold what that one wants next. A row that somebody is
-- writing at this moment is still held, and renewed in the next round.
with held as (
    select u.task_id, u.unit, u.epoch, u.holder
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[]) as l (task_id, unit, epoch, holder)
    join headrace_core.units u on u.task_id = l.task_id and u.unit = l.unit
    where case when u.state = 'PROCESSING' then u.epoch end = l.epoch and u.holder = l.holder
), free as (
    select u.task_id, u.unit
    from held h join headrace_core.units u on u.task_id = h.task_id and u.unit = h.unit
    where case when u.state = 'PROCESSING' then u.epoch end = h.epoch and u.holder = h.holder
    for update of u skip locked
), renewed as (
    update headrace_core.units u set renewal = u.renewal + 1
    from free f
    where u.task_id = f.task_id and u.unit = f.unit
)
select task_id, unit from held;

-- name: read_leases
-- Every lease there is, with its renewal count. Whoever sees one unchanged for a whole lease may take the unit over; one
-- whose holder was seen to die, at once.
select u.task_id, u.unit, u.queue, u.epoch, u.renewal, u.holder, u.interruptions, c.died_at is not null as dead
from headrace_core.units u left join headrace_core.consumers c on c.holder = u.holder
where u.state = 'PROCESSING' and u.holder is not null;

-- name: clear_suspicion
-- Whoever held these leases lives. Units that have started again since are somebody else's matter: their epoch has moved.
with taken as (
    select u.task_id, u.unit
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[]) as l (task_id, unit, epoch, holder)
    join headrace_core.units u on u.task_id = l.task_id and u.unit = l.unit
    where case when u.state = 'PENDING' then u.epoch end = l.epoch and u.suspect
    order by u.task_id, u.unit
    for update of u
)
update headrace_core.units u set suspect = false
from taken t
where u.task_id = t.task_id and u.unit = t.unit;

-- name: save_checkpoint
-- Keep what the unit's next attempt is to start from.
update headrace_core.units
set checkpoint = %(data)s::json
where task_id = %(task)s and unit = %(unit)s and epoch = %(epoch)s and holder = %(holder)s and state = 'PROCESSING';
