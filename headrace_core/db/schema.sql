CREATE SCHEMA headrace;
CREATE SCHEMA headrace_core;
CREATE FUNCTION headrace_core.grant_services() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    wanted  constant text[] := array['headrace_producer', 'headrace_consumer', 'headrace_status', 'headrace_reader'];
    role    text;
    missing text[] := '{}';
begin
    foreach role in array wanted loop
        if to_regrole(role) is null then
            begin
                execute format('create role %I nologin', role);
            exception
                when insufficient_privilege then missing := missing || role;
                -- A migration of another database of this server came first; this waited until it had committed.
                when duplicate_object or unique_violation then null;
            end;
        end if;
    end loop;
    foreach role in array wanted loop
        continue when to_regrole(role) is null;
        execute format('grant usage on schema headrace to %I', role);
        continue when role = 'headrace_reader';
        execute format('grant usage on schema headrace_core to %I', role);
        execute format('grant select on headrace_core.migrations to %I', role); -- headrace db verify
    end loop;
    if to_regrole('headrace_reader') is not null then
        grant select on headrace.tasks, headrace.shards, headrace.attempts, headrace.dead_letters, headrace.audit
            to headrace_reader;
    end if;
    -- Accepts, cancels, redrives, publishes, takes over, removes. It records no result and starts no attempt.
    if to_regrole('headrace_producer') is not null then
        grant select on headrace.attempts, headrace_core.task_records to headrace_producer;
        grant select, delete on headrace_core.units to headrace_producer;
        grant insert (task_id, unit, generation, epoch, namespace, kind, queue, priority, payload, fingerprint,
                idempotency_key, labels, run_at, deadline, max_attempts, max_crashes, sequence, due_at, offered_at, resumed,
                trace_context),
            update (state, reason, generation, due_at, dispatch, offered_at, resumed, epoch, holder, attempt, failures, crashes,
                interruptions, suspect, payload, checkpoint, error, updated_at, started_at, attempt_at, planned_at, ended_at,
                sequence, deadline, fraction, message, total_shards, needed_shards, done_shards, failed_shards, published_in,
                published_seq, trace_context)
            on headrace_core.units to headrace_producer;
        grant select, insert, delete on headrace_core.events, headrace_core.attempts to headrace_producer;
        grant select, insert, delete on headrace_core.dead_letters to headrace_producer;
        grant update (published_at, published_in, removed_at, resolved_at, resolution, redrive_at, redrive_deadline)
            on headrace_core.dead_letters to headrace_producer;
        grant select, insert (name, settings), update (settings, paused_at, updated_at)
            on headrace_core.queues to headrace_producer;
        grant select on headrace_core.kinds, headrace_core.consumers to headrace_producer;
        grant select, update (events_until) on headrace_core.retention to headrace_producer;
        grant select, insert (name, created), update (created, incarnation, seen_at)
            on headrace_core.streams to headrace_producer;
        -- It adds to the audit and removes what is old. It does not read who did what.
        grant insert, delete, update (before, after, outcome, namespace),
            select (id, at, ctid, before, after, outcome, namespace) on headrace_core.audit to headrace_producer;
    end if;
    -- Claims, renews, reports, settles. It removes no task, changes no payload and pauses no queue.
    if to_regrole('headrace_consumer') is not null then
        grant select on headrace_core.units to headrace_consumer;
        grant insert (task_id, unit, generation, epoch, namespace, kind, queue, priority, payload, due_at, offered_at, resumed,
                max_attempts, max_crashes, deadline),
            update (state, reason, due_at, dispatch, offered_at, resumed, epoch, holder, renewal, worker, attempt, failures,
                crashes, interruptions, suspect, result, checkpoint, error, updated_at, started_at, attempt_at, planned_at,
                ended_at, sequence, fraction, message, total_shards, needed_shards, done_shards, failed_shards, published_in,
                published_seq)
            on headrace_core.units to headrace_consumer;
        grant insert on headrace_core.events, headrace_core.attempts to headrace_consumer;
        grant select, insert on headrace_core.dead_letters to headrace_consumer;
        grant select, insert (name, settings), update (settings, updated_at) on headrace_core.queues to headrace_consumer;
        grant select, insert (kind, schema_hash, schema, queue, sharded), update (queue, sharded, seen_at)
            on headrace_core.kinds to headrace_consumer;
        grant select, delete, insert (holder, worker, kinds, queues, draining, running, mode),
            update (kinds, queues, draining, running, mode, seen_at, died_at)
            on headrace_core.consumers to headrace_consumer;
        grant select, insert (health, checked_at), update (health, checked_at) on headrace_core.inference to headrace_consumer;
    end if;
    -- Reads, and nothing else.
    if to_regrole('headrace_status') is not null then
        grant select on headrace.attempts, headrace_core.task_records, headrace_core.units,
            headrace_core.events, headrace_core.queues, headrace_core.consumers, headrace_core.inference to headrace_status;
        grant select (queue, resolved_at) on headrace_core.dead_letters to headrace_status;
    end if;
    if cardinality(missing) > 0 then
        raise notice using errcode = '01HR1', message = format(
            'the roles %s are missing, and %s may not create roles: have somebody who may run `%s`, then run headrace db '
            'migrate again. Services that connect as %2$s do not need them.',
            array_to_string(missing, ', '), current_user,
            (select string_agg(format('create role %I nologin;', name), ' ') from unnest(missing) as name));
    end if;
end
$_$;
CREATE TABLE headrace_core.attempts (
    task_id uuid NOT NULL,
    unit integer NOT NULL,
    plan boolean DEFAULT false NOT NULL,
    generation integer NOT NULL,
    attempt integer NOT NULL,
    epoch integer NOT NULL,
    worker text NOT NULL,
    started_at timestamp with time zone,
    ended_at timestamp with time zone DEFAULT now() NOT NULL,
    outcome text NOT NULL,
    error json
)
WITH (autovacuum_vacuum_scale_factor='0.05');
CREATE TABLE headrace_core.units (
    task_id uuid NOT NULL,
    unit integer NOT NULL,
    generation integer DEFAULT 1 NOT NULL,
    namespace text NOT NULL,
    kind text NOT NULL,
    queue text NOT NULL,
    priority smallint NOT NULL,
    state text DEFAULT 'PENDING'::text NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    due_at timestamp with time zone NOT NULL,
    dispatch integer DEFAULT 1 NOT NULL,
    offered_at timestamp with time zone,
    resumed boolean DEFAULT false NOT NULL,
    epoch integer DEFAULT 0 NOT NULL,
    holder uuid,
    renewal integer DEFAULT 0 NOT NULL,
    worker text DEFAULT ''::text NOT NULL,
    attempt integer DEFAULT 0 NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    crashes integer DEFAULT 0 NOT NULL,
    interruptions integer DEFAULT 0 NOT NULL,
    max_attempts integer NOT NULL,
    max_crashes integer NOT NULL,
    suspect boolean DEFAULT false NOT NULL,
    payload json NOT NULL,
    result json,
    checkpoint json,
    error json,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    attempt_at timestamp with time zone,
    planned_at timestamp with time zone,
    ended_at timestamp with time zone,
    sequence bigint DEFAULT 0 NOT NULL,
    idempotency_key text,
    fingerprint bytea,
    labels jsonb DEFAULT '{}'::jsonb NOT NULL,
    run_at timestamp with time zone,
    deadline timestamp with time zone,
    fraction real DEFAULT 0 NOT NULL,
    message text DEFAULT ''::text NOT NULL,
    total_shards integer,
    needed_shards integer,
    done_shards integer DEFAULT 0 NOT NULL,
    failed_shards integer DEFAULT 0 NOT NULL,
    published_in integer,
    published_seq bigint,
    trace_context text,
    CONSTRAINT units_check CHECK (((holder IS NULL) OR (state = 'PROCESSING'::text))),
    CONSTRAINT units_priority_check CHECK (((priority >= 1) AND (priority <= 3))),
    CONSTRAINT units_state_check CHECK ((state = ANY (ARRAY['PENDING'::text, 'PROCESSING'::text, 'COMPLETED'::text, 'FAILED'::text, 'CANCELLED'::text, 'EXPIRED'::text]))),
    CONSTRAINT units_unit_check CHECK ((unit >= '-2'::integer))
)
WITH (fillfactor='70', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_insert_scale_factor='0.02', autovacuum_analyze_scale_factor='0.02', autovacuum_vacuum_cost_limit='1000', toast.autovacuum_vacuum_threshold='5000', toast.autovacuum_vacuum_scale_factor='0.05');
CREATE VIEW headrace.attempts AS
 SELECT attempts.task_id,
        CASE
            WHEN (attempts.unit = '-2'::integer) THEN 'MERGE'::text
            WHEN (attempts.unit >= 0) THEN 'SHARD'::text
            WHEN attempts.plan THEN 'PLAN'::text
            ELSE 'TASK'::text
        END AS unit_type,
        CASE
            WHEN (attempts.unit >= 0) THEN attempts.unit
            ELSE NULL::integer
        END AS shard_index,
    attempts.generation,
    attempts.attempt,
    attempts.epoch,
    attempts.worker,
    attempts.started_at,
    attempts.ended_at,
    attempts.outcome,
    attempts.error
   FROM headrace_core.attempts
UNION ALL
 SELECT units.task_id,
        CASE
            WHEN (units.unit = '-2'::integer) THEN 'MERGE'::text
            WHEN (units.unit >= 0) THEN 'SHARD'::text
            WHEN (units.planned_at IS NOT NULL) THEN 'PLAN'::text
            ELSE 'TASK'::text
        END AS unit_type,
        CASE
            WHEN (units.unit >= 0) THEN units.unit
            ELSE NULL::integer
        END AS shard_index,
    units.generation,
    units.attempt,
    units.epoch,
    units.worker,
    units.attempt_at AS started_at,
        CASE
            WHEN ((units.unit = '-1'::integer) AND (units.planned_at IS NOT NULL)) THEN units.planned_at
            WHEN (units.holder IS NULL) THEN units.ended_at
            ELSE NULL::timestamp with time zone
        END AS ended_at,
        CASE
            WHEN (units.holder IS NULL) THEN 'COMPLETED'::text
            ELSE units.state
        END AS outcome,
    NULL::json AS error
   FROM headrace_core.units
  WHERE ((units.attempt > 0) AND ((units.state = 'COMPLETED'::text) OR (units.holder IS NOT NULL) OR ((units.unit = '-1'::integer) AND (units.planned_at IS NOT NULL))));
CREATE TABLE headrace_core.audit (
    id uuid NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    who text NOT NULL,
    peer text NOT NULL,
    action text NOT NULL,
    namespace text DEFAULT ''::text NOT NULL,
    target text NOT NULL,
    before jsonb,
    after jsonb,
    outcome text NOT NULL
);
CREATE VIEW headrace.audit AS
 SELECT id,
    at,
    who,
    peer,
    action,
    namespace,
    target,
    before,
    after,
    outcome
   FROM headrace_core.audit;
CREATE TABLE headrace_core.dead_letters (
    id text NOT NULL,
    task_id uuid,
    generation integer DEFAULT 0 NOT NULL,
    namespace text DEFAULT ''::text NOT NULL,
    queue text NOT NULL,
    kind text DEFAULT ''::text NOT NULL,
    reason text NOT NULL,
    error json,
    budgets json DEFAULT '{}'::json NOT NULL,
    message bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    published_at timestamp with time zone,
    resolved_at timestamp with time zone,
    resolution text DEFAULT ''::text NOT NULL,
    removed_at timestamp with time zone,
    redrive_at timestamp with time zone,
    redrive_deadline timestamp with time zone,
    published_in integer,
    CONSTRAINT dead_letters_resolution_check CHECK ((resolution = ANY (ARRAY[''::text, 'REDRIVEN'::text, 'DISCARDED'::text])))
)
WITH (fillfactor='80', autovacuum_vacuum_scale_factor='0.05');
CREATE VIEW headrace.dead_letters AS
 SELECT id,
    task_id,
    generation,
    namespace,
    queue,
    kind,
    reason,
    error,
    budgets,
    created_at,
    published_at,
    resolved_at,
    resolution
   FROM headrace_core.dead_letters;
CREATE VIEW headrace.shards AS
 SELECT task_id,
    unit AS shard_index,
    state,
    reason,
    generation,
    payload,
    result,
    error,
    attempt AS attempts,
    failures,
    crashes,
    interruptions,
    started_at,
    ended_at,
    worker
   FROM headrace_core.units
  WHERE (unit >= 0);
CREATE VIEW headrace.tasks AS
 SELECT task_id AS id,
    namespace,
    kind,
    queue,
    labels,
    state,
    reason,
    generation,
    payload,
    result,
    error,
    priority,
    attempt AS attempts,
    failures,
    crashes,
    interruptions,
    sequence,
    total_shards,
    done_shards,
    idempotency_key,
    created_at,
    due_at,
    run_at,
    deadline,
    started_at,
    ended_at,
    updated_at,
    worker
   FROM headrace_core.units
  WHERE (unit = '-1'::integer);
CREATE TABLE headrace_core.consumers (
    holder uuid NOT NULL,
    worker text NOT NULL,
    kinds text[] NOT NULL,
    queues text[] NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    draining boolean DEFAULT false NOT NULL,
    running integer DEFAULT 0 NOT NULL,
    mode text DEFAULT ''::text NOT NULL,
    died_at timestamp with time zone
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='200');
CREATE TABLE headrace_core.events (
    task_id uuid NOT NULL,
    sequence bigint NOT NULL,
    generation integer NOT NULL,
    unit integer NOT NULL,
    plan boolean DEFAULT false NOT NULL,
    attempt integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    type text NOT NULL,
    state text,
    reason text DEFAULT ''::text NOT NULL,
    error json,
    due_at timestamp with time zone,
    terminal boolean DEFAULT false NOT NULL,
    fraction real,
    text text,
    byte_offset bigint,
    done integer,
    total integer,
    CONSTRAINT events_type_check CHECK ((type = ANY (ARRAY['state'::text, 'progress'::text, 'output'::text])))
)
WITH (autovacuum_vacuum_threshold='10000', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_insert_scale_factor='0.05', autovacuum_analyze_scale_factor='0.05', autovacuum_vacuum_cost_limit='1000');
CREATE TABLE headrace_core.inference (
    singleton boolean DEFAULT true NOT NULL,
    health json NOT NULL,
    checked_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT inference_singleton_check CHECK (singleton)
);
CREATE TABLE headrace_core.kinds (
    kind text NOT NULL,
    schema_hash text NOT NULL,
    schema json,
    queue text NOT NULL,
    sharded boolean DEFAULT false NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE headrace_core.migrations (
    version text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE headrace_core.queues (
    name text NOT NULL,
    settings json DEFAULT '{}'::json NOT NULL,
    paused_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT queues_name_check CHECK ((name ~ '^[a-z0-9_-]{1,64}$'::text))
);
CREATE TABLE headrace_core.retention (
    singleton boolean DEFAULT true NOT NULL,
    events_until timestamp with time zone,
    CONSTRAINT retention_singleton_check CHECK (singleton)
);
CREATE TABLE headrace_core.streams (
    name text NOT NULL,
    created text NOT NULL,
    incarnation integer DEFAULT 0 NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE VIEW headrace_core.task_records AS
 SELECT task_id AS id,
    namespace,
    kind,
    queue,
    priority,
    state,
    reason,
    generation,
    sequence,
    labels,
    idempotency_key,
    attempt,
    failures,
    crashes,
    interruptions,
    max_attempts,
    max_crashes,
    fraction,
    message,
    done_shards,
    total_shards,
    created_at,
    due_at,
    deadline,
    started_at,
    ended_at,
    updated_at,
    worker,
    error
   FROM headrace_core.units
  WHERE (unit = '-1'::integer);
ALTER TABLE ONLY headrace_core.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (task_id, unit, epoch);
ALTER TABLE ONLY headrace_core.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (id);
ALTER TABLE ONLY headrace_core.consumers
    ADD CONSTRAINT consumers_pkey PRIMARY KEY (holder);
ALTER TABLE ONLY headrace_core.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);
ALTER TABLE ONLY headrace_core.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (task_id, sequence);
ALTER TABLE ONLY headrace_core.inference
    ADD CONSTRAINT inference_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY headrace_core.kinds
    ADD CONSTRAINT kinds_pkey PRIMARY KEY (kind, schema_hash);
ALTER TABLE ONLY headrace_core.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);
ALTER TABLE ONLY headrace_core.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (name);
ALTER TABLE ONLY headrace_core.retention
    ADD CONSTRAINT retention_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY headrace_core.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (name);
ALTER TABLE ONLY headrace_core.units
    ADD CONSTRAINT units_pkey PRIMARY KEY (task_id, unit);
CREATE INDEX audit_at ON headrace_core.audit USING btree (at);
CREATE INDEX dead_letters_alone ON headrace_core.dead_letters USING btree (resolved_at) WHERE ((resolved_at IS NOT NULL) AND (task_id IS NULL));
CREATE INDEX dead_letters_by_queue ON headrace_core.dead_letters USING btree (queue) WHERE (resolved_at IS NULL);
CREATE INDEX dead_letters_incarnation ON headrace_core.dead_letters USING btree (COALESCE(published_in, 0)) WHERE ((resolved_at IS NULL) AND (published_at IS NOT NULL));
CREATE INDEX dead_letters_listed ON headrace_core.dead_letters USING btree (created_at DESC, id);
CREATE INDEX dead_letters_open ON headrace_core.dead_letters USING btree (created_at DESC, id) WHERE (resolved_at IS NULL);
CREATE INDEX dead_letters_published ON headrace_core.dead_letters USING btree (id) WHERE ((resolved_at IS NULL) AND (published_at IS NOT NULL));
CREATE INDEX dead_letters_redrive ON headrace_core.dead_letters USING btree (redrive_at) WHERE ((redrive_at IS NOT NULL) AND (resolved_at IS NULL));
CREATE INDEX dead_letters_task ON headrace_core.dead_letters USING btree (task_id, generation DESC) WHERE (task_id IS NOT NULL);
CREATE INDEX dead_letters_unpublished ON headrace_core.dead_letters USING btree (created_at) WHERE ((published_at IS NULL) AND (resolved_at IS NULL));
CREATE INDEX dead_letters_unremoved ON headrace_core.dead_letters USING btree (resolved_at) WHERE ((resolved_at IS NOT NULL) AND (removed_at IS NULL));
CREATE INDEX units_deadline ON headrace_core.units USING btree (deadline) WHERE ((unit = '-1'::integer) AND (deadline IS NOT NULL) AND (state = ANY (ARRAY['PENDING'::text, 'PROCESSING'::text])));
CREATE INDEX units_ended ON headrace_core.units USING btree (ended_at) WHERE ((unit = '-1'::integer) AND (ended_at IS NOT NULL) AND (state <> 'FAILED'::text));
CREATE INDEX units_failed ON headrace_core.units USING btree (ended_at) WHERE ((unit = '-1'::integer) AND (state = 'FAILED'::text));
CREATE INDEX units_held ON headrace_core.units USING btree (holder) WHERE ((state = 'PROCESSING'::text) AND (holder IS NOT NULL));
CREATE UNIQUE INDEX units_idempotency ON headrace_core.units USING btree (namespace, idempotency_key) WHERE (idempotency_key IS NOT NULL);
CREATE INDEX units_labels ON headrace_core.units USING gin (labels jsonb_path_ops) WHERE (labels <> '{}'::jsonb);
CREATE INDEX units_pending ON headrace_core.units USING btree (queue, resumed DESC, priority DESC, due_at, task_id) WHERE (state = 'PENDING'::text);
CREATE INDEX units_processing ON headrace_core.units USING btree (queue) WHERE ((state = 'PROCESSING'::text) AND (unit = '-1'::integer));
CREATE INDEX units_published ON headrace_core.units USING btree (queue, (
CASE
    WHEN resumed THEN 0
    ELSE (priority)::integer
END), published_in, published_seq) WHERE ((state = 'PENDING'::text) AND (published_in IS NOT NULL));
CREATE INDEX units_unpublished ON headrace_core.units USING btree (queue, (
CASE
    WHEN resumed THEN 0
    ELSE (priority)::integer
END), COALESCE(offered_at, '-infinity'::timestamp with time zone), due_at) WHERE ((state = 'PENDING'::text) AND (published_in IS NULL));
