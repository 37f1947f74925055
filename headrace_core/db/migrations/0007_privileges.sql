-- Least privilege: a group role for each service, with what its statements need and no more. Label: before deploy.
--
-- Services that connect as the owner of the schema go on as before. A service's login role gets its rights by membership:
-- grant headrace_producer to <login>. Roles belong to the whole server, grants to this database.

-- Idempotent: `headrace db migrate` calls it each time, so that it catches up once the roles are there, and after a restore
-- that left the grants out. Whoever may not create roles is told what to have created, in one notice (SQLSTATE 01HR1).
create function headrace_core.grant_services() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
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
$$;
revoke execute on function headrace_core.grant_services() from public;

select headrace_core.grant_services();
