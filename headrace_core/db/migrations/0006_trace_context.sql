-- The trace that a task belongs to. Label: before deploy. Null and free where nothing is traced; the older release neither
-- reads nor writes it.

-- W3C `traceparent`, and after a space `tracestate` where there is one. Of the task row only: shards and merges look it up
-- when they are claimed. A redrive replaces it with the context of its own span.
alter table headrace_core.units add column trace_context text;
