-- The sweep of the outbox reads what is to be offered now, and nothing else. Label: before deploy. Building the index holds
-- up writes to the table of units for about half a second per million waiting rows.

-- With the time of the last offer in it: what was offered a moment ago, all of a busy queue, is passed over as a range.
drop index headrace_core.units_unpublished;
create index units_unpublished on headrace_core.units
    (queue, (case when resumed then 0 else priority end), (coalesce(offered_at, '-infinity'::timestamptz)), due_at)
    where state = 'PENDING' and published_in is null;
