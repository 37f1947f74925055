"""A login role for each service on a Postgres of our own: each is a member of its service's group and of no other.

The groups' rights come with the schema (headrace_core/db/migrations/0007_privileges.sql). Here are only the names and
the memberships, which belong to the whole server; so they may be there before the first database is.
"""

from urllib.parse import urlsplit, urlunsplit

SERVICES = ("producer", "consumer", "status")
# In one statement: another test's server is another server, but two databases of one may be made at once.
CREATE = """
do $$
declare
    service text;
begin
    perform pg_advisory_xact_lock(1280264001);
    foreach service in array array['producer', 'consumer', 'status'] loop
        if to_regrole('headrace_' || service) is null then
            execute format('create role %I nologin', 'headrace_' || service);
        end if;
        if to_regrole(service) is null then
            execute format('create role %I login in role %I', service, 'headrace_' || service);
        end if;
    end loop;
end
$$
"""


def as_service(url: str, service: str) -> str:
    """The URL `url` for the login role of `service` (`producer`, `consumer-2`, …) in place of its own user."""
    name = service.partition("-")[0]
    if name not in SERVICES:
        raise ValueError(f"{service!r} is none of {', '.join(SERVICES)}")
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))
