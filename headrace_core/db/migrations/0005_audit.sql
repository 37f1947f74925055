-- What operators did. Label: before deploy. New things only: nothing waits for it.

create table headrace_core.audit (
    id        uuid        primary key,
    at        timestamptz not null default now(),
    -- Who: the identity (token:ci, jwt:alice, certificate:billing) or "anonymous", and the address that the call came from.
    who       text        not null,
    peer      text        not null,
    -- What: pause, resume, purge, redrive, discard, cancel; and of what. Never a payload.
    action    text        not null,
    namespace text        not null default '',
    target    text        not null,
    before    jsonb,
    after     jsonb,
    -- OK, UNFINISHED (a purge that broke off), or the reason of the error.
    outcome   text        not null
);
create index audit_at on headrace_core.audit (at);

create view headrace.audit as
select id, at, who, peer, action, namespace, target, before, after, outcome from headrace_core.audit;
