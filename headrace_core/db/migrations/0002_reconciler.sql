-- What the reconciler compares the streams by. Label: before deploy; stop the services of 0001 first, which was never released.
--
-- A stream that is made anew under its name is another one: it gets the next incarnation. A publication is noted with the
-- incarnation and the sequence in which the stream has it, so that a loss is known and not guessed from age.

create table headrace_core.streams (
    name        text        primary key,
    -- The creation time as the server tells it: the stream's identity.
    created     text        not null,
    incarnation integer     not null default 0,
    seen_at     timestamptz not null default now()
);

-- Both null while the message is not known to be in the stream: that row, pending and due, is the outbox.
alter table headrace_core.units
    add column published_in integer,
    add column published_seq bigint,
    drop column published_at;
-- Both begin with the subject; level 0 is `resume`. The outbox of each, so that a subject that the stream refuses for now
-- costs the others nothing, however much waits there.
create index units_unpublished on headrace_core.units (queue, (case when resumed then 0 else priority end), due_at)
    where state = 'PENDING' and published_in is null;
-- What should still wait in the stream, in its order.
create index units_published on headrace_core.units
    (queue, (case when resumed then 0 else priority end), published_in, published_seq)
    where state = 'PENDING' and published_in is not null;

-- The incarnation of the DLQ stream that has the entry.
alter table headrace_core.dead_letters add column published_in integer;
-- To count and to walk what the DLQ stream should hold, without the table.
create index dead_letters_published on headrace_core.dead_letters (id)
    where resolved_at is null and published_at is not null;
create index dead_letters_incarnation on headrace_core.dead_letters ((coalesce(published_in, 0)))
    where resolved_at is null and published_at is not null;

-- Set by a supervisor that saw the process end: its leases are taken over at once.
alter table headrace_core.consumers add column died_at timestamptz;

-- It always exists, also before the first service has declared its queues: the relay goes through the declared ones.
insert into headrace_core.queues (name) values ('default') on conflict do nothing;
