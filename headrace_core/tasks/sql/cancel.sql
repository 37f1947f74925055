-- name: overdue
-- Tasks whose deadline has passed, locked. Another replica's share is skipped.
select task_id from headrace_core.units
where unit = -1 and deadline < now() and state in ('PENDING', 'PROCESSING')
order by task_id
limit %(limit)s
for update skip locked;
