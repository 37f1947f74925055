-- Retention, and tables that cost the same on day 300 as on day 1. Label: before deploy. Building the two indexes holds up
-- writes to the table of units for about a second per million rows.

-- FAILED stays until it is redriven or discarded. In an index of its own it is in nobody's way: what retention may remove
-- next is always the lower end of the other one. A row is in one of the two, so a transition costs what it did.
drop index headrace_core.units_ended;
create index units_ended on headrace_core.units (ended_at) where unit = -1 and ended_at is not null and state <> 'FAILED';
create index units_failed on headrace_core.units (ended_at) where unit = -1 and state = 'FAILED';

-- Closed dead letters of messages that were no tasks: they go by themselves, the others with their tasks.
create index dead_letters_alone on headrace_core.dead_letters (resolved_at)
    where resolved_at is not null and task_id is null;

-- How far retention has come with what leaves no trace in the rows that stay. One row; its lock is the turn.
create table headrace_core.retention (
    singleton    boolean     primary key default true check (singleton),
    -- The events of all tasks that ended until then, FAILED aside, are gone. Null: nothing was removed yet.
    events_until timestamptz
);
insert into headrace_core.retention default values;

-- A share of a table that grows lets ever more dead rows pile up in the small, hot part of it; so the shares are small, and
-- vacuums of the large tables may read five times faster than by default: they have to keep pace with 10,000 changes a second.
alter table headrace_core.units set (
    autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_insert_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 1000,
    toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_scale_factor = 0.05
);
alter table headrace_core.events set (
    autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_limit = 1000
);
alter table headrace_core.attempts set (autovacuum_vacuum_scale_factor = 0.05);
-- Updated several times in its life, and indexed eight times.
alter table headrace_core.dead_letters set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
-- A handful of rows that are updated every second: their new versions fit beside them.
alter table headrace_core.consumers
    set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
