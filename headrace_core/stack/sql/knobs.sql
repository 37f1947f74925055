-- name: workers_of
-- The consumers that run a task now, by host/pid.
select distinct worker
from headrace_core.units
where task_id = %(task)s and state = 'PROCESSING' and holder is not null;

-- name: publications_of
-- What a message of each unit of a task says: its last publication.
select task_id, unit, queue, priority, resumed, dispatch
from headrace_core.units
where task_id = %(task)s
order by unit;
