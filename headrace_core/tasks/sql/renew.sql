-- name: renew
-- Renew leases, one row for each that is still held. What is missing has been lost.
with held as (
    select u.task_id, u.unit
    from unnest(%(tasks)b::uuid[], %(units)b::int[], %(epochs)b::int[], %(holders)b::uuid[]) as l (task_id, unit, epoch, holder)
    join headrace_core.units u on u.task_id = l.task_id and u.unit = l.unit
    where u.state = 'PROCESSING' and u.epoch = l.epoch and u.holder = l.holder
    order by u.task_id, u.unit
    for update of u
)
update headrace_core.units u set renewal = u.renewal + 1
from held h
where u.task_id = h.task_id and u.unit = h.unit
returning u.task_id, u.unit;

-- name: read_leases
-- Every lease there is, with its renewal count. Whoever sees one unchanged for a whole lease may take the unit over.
select task_id, unit, queue, epoch, renewal, holder, interruptions
from headrace_core.units
where state = 'PROCESSING' and holder is not null;

-- name: save_checkpoint
-- Keep what the unit's next attempt is to start from.
update headrace_core.units
set checkpoint = %(data)s::json
where task_id = %(task)s and unit = %(unit)s and epoch = %(epoch)s and holder = %(holder)s and state = 'PROCESSING';
