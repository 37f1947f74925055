-- The first schema. Label: before deploy.
--
-- Two schemas: `headrace_core` holds the tables and is private; `headrace` holds the views, a public contract that is
-- versioned with the API.

create schema if not exists headrace_core;
create schema if not exists headrace;

-- A unit is what one lease covers. A task is a row with unit = -1; for a sharded kind that row's own lease covers the
-- plan, and the task stays PROCESSING (without a holder) until its merge ends. Shards are rows 0..n-1, the merge is -2.
create table headrace_core.units (
    task_id          uuid        not null,
    unit             integer     not null check (unit >= -2),
    generation       integer     not null default 1,
    namespace        text        not null,
    kind             text        not null,
    queue            text        not null,
    priority         smallint    not null check (priority between 1 and 3),
    state            text        not null default 'PENDING'
                     check (state in ('PENDING', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED', 'EXPIRED')),
    reason           text        not null default '',
    -- Dispatch. Every intended publication takes a new number; published_at is null while the message is not known to be
    -- in the stream. A row that is pending, due and unpublished is the outbox.
    due_at           timestamptz not null,
    dispatch         integer     not null default 1,
    published_at     timestamptz,
    -- The last try to publish; null: none yet. The sweep leaves a fresh try alone for a moment.
    offered_at       timestamptz,
    -- True once the task has started: it goes to the `resume` subject and is not queued behind new ones.
    resumed          boolean     not null default false,
    -- The lease. Epochs never restart; (epoch, holder) is the right to write.
    epoch            integer     not null default 0,
    holder           uuid,
    renewal          integer     not null default 0,
    worker           text        not null default '',
    -- The three budgets of this generation.
    attempt          integer     not null default 0,
    failures         integer     not null default 0,
    crashes          integer     not null default 0,
    interruptions    integer     not null default 0,
    max_attempts     integer     not null,
    max_crashes      integer     not null,
    suspect          boolean     not null default false,
    -- JSON as text, checked at the edge and stored byte for byte. A shard's payload is the shard.
    payload          json        not null,
    result           json,
    checkpoint       json,
    error            json,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    started_at       timestamptz,
    attempt_at       timestamptz,
    planned_at       timestamptz,
    ended_at         timestamptz,
    -- Of the task row only.
    sequence         bigint      not null default 0,
    idempotency_key  text,
    fingerprint      bytea,
    labels           jsonb       not null default '{}',
    run_at           timestamptz,
    deadline         timestamptz,
    fraction         real        not null default 0,
    message          text        not null default '',
    -- Null until planned; needed_shards is the quorum in shards.
    total_shards     integer,
    needed_shards    integer,
    done_shards      integer     not null default 0,
    failed_shards    integer     not null default 0,
    primary key (task_id, unit),
    -- A lease without a holder, or a holder without a lease, would be a way around the fence.
    check (holder is null or state = 'PROCESSING')
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);

-- The only indexes on the hot table are partial: on what is active, or on what few rows have.
create unique index units_idempotency on headrace_core.units (namespace, idempotency_key) where idempotency_key is not null;
create index units_pending on headrace_core.units (queue, resumed desc, priority desc, due_at, task_id) where state = 'PENDING';
create index units_unpublished on headrace_core.units (due_at) where state = 'PENDING' and published_at is null;
create index units_held on headrace_core.units (holder) where state = 'PROCESSING' and holder is not null;
create index units_processing on headrace_core.units (queue) where state = 'PROCESSING' and unit = -1;
create index units_deadline on headrace_core.units (deadline)
    where unit = -1 and deadline is not null and state in ('PENDING', 'PROCESSING');
-- For the rates of the queues, and for retention.
create index units_ended on headrace_core.units (ended_at) where unit = -1 and ended_at is not null;
create index units_labels on headrace_core.units using gin (labels jsonb_path_ops) where labels <> '{}';

-- A change, with the sequence that the task's row gave it in the same transaction.
create table headrace_core.events (
    task_id    uuid        not null,
    sequence   bigint      not null,
    generation integer     not null,
    unit       integer     not null,
    -- For unit = -1: true while the lease covers the plan of a sharded kind.
    plan       boolean     not null default false,
    attempt    integer     not null,
    at         timestamptz not null default now(),
    -- 'state': state, reason, error, due_at · 'progress': fraction, message, done, total · 'output': text, byte_offset
    type       text        not null check (type in ('state', 'progress', 'output')),
    state      text,
    reason     text        not null default '',
    error      json,
    due_at     timestamptz,
    terminal   boolean     not null default false,
    fraction   real,
    text       text,
    byte_offset bigint,
    done       integer,
    total      integer,
    primary key (task_id, sequence)
) with (autovacuum_vacuum_insert_scale_factor = 0.2);

-- Attempts that ended without completing their unit. The running attempt and the one that completed stand in the unit's
-- own row: the ordinary course costs no row here.
create table headrace_core.attempts (
    task_id    uuid        not null,
    unit       integer     not null,
    plan       boolean     not null default false,
    generation integer     not null,
    attempt    integer     not null,
    epoch      integer     not null,
    worker     text        not null,
    started_at timestamptz,
    ended_at   timestamptz not null default now(),
    outcome    text        not null,
    error      json,
    primary key (task_id, unit, epoch)
);

-- Written in the transaction that makes a task FAILED.
create table headrace_core.dead_letters (
    id           text        primary key,
    task_id      uuid,
    generation   integer     not null default 0,
    namespace    text        not null default '',
    queue        text        not null,
    kind         text        not null default '',
    reason       text        not null,
    error        json,
    budgets      json        not null default '{}',
    -- The bytes of a message that was no task, at most 64 KiB.
    message      bytea,
    created_at   timestamptz not null default now(),
    published_at timestamptz,
    resolved_at  timestamptz,
    resolution   text        not null default '' check (resolution in ('', 'REDRIVEN', 'DISCARDED')),
    -- The entry in the DLQ stream has been removed after the resolution.
    removed_at   timestamptz,
    -- For a redrive with a rate: not before.
    redrive_at   timestamptz,
    redrive_deadline timestamptz
);
create index dead_letters_task on headrace_core.dead_letters (task_id, generation desc) where task_id is not null;
create index dead_letters_open on headrace_core.dead_letters (created_at desc, id) where resolved_at is null;
create index dead_letters_by_queue on headrace_core.dead_letters (queue) where resolved_at is null;
create index dead_letters_listed on headrace_core.dead_letters (created_at desc, id);
create index dead_letters_unpublished on headrace_core.dead_letters (created_at) where published_at is null and resolved_at is null;
create index dead_letters_unremoved on headrace_core.dead_letters (resolved_at) where resolved_at is not null and removed_at is null;
create index dead_letters_redrive on headrace_core.dead_letters (redrive_at) where redrive_at is not null and resolved_at is null;

-- Declared queues: the pause, and the settings as the services last read them from headrace.toml.
create table headrace_core.queues (
    name       text        primary key check (name ~ '^[a-z0-9_-]{1,64}$'),
    settings   json        not null default '{}',
    paused_at  timestamptz,
    updated_at timestamptz not null default now()
);

-- Kinds with the schemas that consumers registered: fitting one is enough. An entry ends 7 days after its last consumer.
create table headrace_core.kinds (
    kind        text        not null,
    schema_hash text        not null,
    schema      json,
    queue       text        not null,
    sharded     boolean     not null default false,
    seen_at     timestamptz not null default now(),
    primary key (kind, schema_hash)
);

-- Consumer processes; a row is renewed while its process lives.
create table headrace_core.consumers (
    holder     uuid        primary key,
    worker     text        not null,
    kinds      text[]      not null,
    queues     text[]      not null,
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now(),
    draining   boolean     not null default false,
    running    integer     not null default 0,
    -- 'broker', 'fallback' or 'postgres'
    mode       text        not null default ''
);

-- What a consumer of ai.analyze last saw of its inference back end: one row.
create table headrace_core.inference (
    singleton  boolean     primary key default true check (singleton),
    health     json        not null,
    checked_at timestamptz not null default now()
);

-- The basic view of a task, column for column the TaskRecord of the code. Private.
create view headrace_core.task_records as
    select task_id as id, namespace, kind, queue, priority, state, reason, generation, sequence, labels, idempotency_key, attempt,
           failures, crashes, interruptions, max_attempts, max_crashes, fraction, message, done_shards, total_shards, created_at,
           due_at, deadline, started_at, ended_at, updated_at, worker, error
    from headrace_core.units where unit = -1;

create view headrace.tasks as
    select task_id as id, namespace, kind, queue, labels, state, reason, generation, payload, result, error, priority,
           attempt as attempts, failures, crashes, interruptions, sequence, total_shards, done_shards, idempotency_key,
           created_at, due_at, run_at, deadline, started_at, ended_at, updated_at, worker
    from headrace_core.units where unit = -1;

create view headrace.shards as
    select task_id, unit as shard_index, state, reason, generation, payload, result, error, attempt as attempts,
           failures, crashes, interruptions, started_at, ended_at, worker
    from headrace_core.units where unit >= 0;

-- Those that failed or were interrupted, then the running and the completed ones.
create view headrace.attempts as
    select task_id, case when unit = -2 then 'MERGE' when unit >= 0 then 'SHARD' when plan then 'PLAN' else 'TASK' end as unit_type,
           case when unit >= 0 then unit end as shard_index, generation, attempt, epoch, worker, started_at, ended_at, outcome, error
    from headrace_core.attempts
    union all
    select task_id, case when unit = -2 then 'MERGE' when unit >= 0 then 'SHARD' when planned_at is not null then 'PLAN' else 'TASK' end,
           case when unit >= 0 then unit end, generation, attempt, epoch, worker, attempt_at,
           case when unit = -1 and planned_at is not null then planned_at when holder is null then ended_at end,
           case when holder is null then 'COMPLETED' else state end, null
    from headrace_core.units
    where attempt > 0 and (state = 'COMPLETED' or holder is not null or (unit = -1 and planned_at is not null));

create view headrace.dead_letters as
    select id, task_id, generation, namespace, queue, kind, reason, error, budgets, created_at, published_at, resolved_at, resolution
    from headrace_core.dead_letters;
