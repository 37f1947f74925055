-- name: note
-- One row for each action. An action in several transactions writes it with the first and completes it with the others.
insert into headrace_core.audit as a (id, who, peer, action, namespace, target, before, after, outcome)
values (%(id)s, %(who)s, %(peer)s, %(action)s, %(namespace)s, %(target)s, %(before)s::jsonb, %(after)s::jsonb, %(outcome)s)
on conflict (id) do update
set before = coalesce(a.before, excluded.before), after = coalesce(excluded.after, a.after), outcome = excluded.outcome,
    namespace = excluded.namespace;
