"""The group roles in Postgres: each may run its service's statements, needs every grant that it has, and no more."""

import re
from collections.abc import Mapping

import psycopg
import pytest
from psycopg import errors as sqlstate

from headrace_core.stack.logins import as_service
from tests.privileges import statements

SERVICES = ("producer", "consumer", "status")
_GRANTS = """
select c.oid::regclass::text as relation, a.privilege_type as privilege, '' as attribute
from pg_class c cross join lateral aclexplode(c.relacl) a
where a.grantee = %(role)s::regrole and c.relkind in ('r', 'v', 'p', 'S')
union all
select t.attrelid::regclass::text, a.privilege_type, quote_ident(t.attname)
from pg_attribute t cross join lateral aclexplode(t.attacl) a where a.grantee = %(role)s::regrole
order by 1, 2, 3
"""
ANY_TASK = "'00000000-0000-7000-8000-000000000000'"


@pytest.mark.parametrize("service", SERVICES)
async def test_each_statement_of_a_service_is_allowed_to_its_role(database_url: str, service: str) -> None:
    refused = {}
    async with await psycopg.AsyncConnection.connect(as_service(database_url, service), autocommit=True) as connection:
        for name, sql in statements.of(service).items():
            try:
                await _check(connection, sql)
            except sqlstate.InsufficientPrivilege as error:
                refused[name] = str(error)
    assert refused == {}


@pytest.mark.parametrize("service", SERVICES)
async def test_no_role_has_a_grant_that_no_statement_of_its_service_needs(database_url: str, service: str) -> None:
    known, role = statements.of(service), f"headrace_{service}"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as owner:
        grants = await (await owner.execute(_GRANTS.encode(), {"role": role})).fetchall()
        needless = [grant for grant in grants if not await _is_needed(owner, role, grant, known)]
    assert len(grants) > 5
    assert needless == []


async def _is_needed(
    owner: psycopg.AsyncConnection[tuple[str, ...]], role: str, grant: tuple[str, ...], known: Mapping[str, str]
) -> bool:
    """Whether some statement is refused once this one grant is taken away."""
    relation, privilege, attribute = grant
    columns = f"({attribute})" if attribute else ""
    concerned = re.compile(rf"{re.escape(relation)}\b")
    try:
        async with owner.transaction(force_rollback=True):
            await owner.execute(f"revoke {privilege} {columns} on {relation} from {role}".encode())
            await owner.execute(f"set local role {role}".encode())
            for sql in known.values():
                if concerned.search(sql):
                    await _check(owner, sql)
    except sqlstate.InsufficientPrivilege:
        return True
    return False


async def _check(connection: psycopg.AsyncConnection[tuple[str, ...]], sql: str) -> None:
    """Postgres checks the privileges of a statement that it only explains, too."""
    await connection.execute(f"explain {sql}".encode(), prepare=False)


FORBIDDEN = {
    "producer": [
        "update headrace_core.units set result = '1'",
        f"insert into headrace_core.units (task_id, result) values ({ANY_TASK}, '1')",
        "update headrace_core.units set namespace = 'other'",
        "update headrace_core.units set kind = 'other'",
        "update headrace_core.units set idempotency_key = 'other'",
        "update headrace_core.events set state = 'COMPLETED'",
        "update headrace_core.attempts set outcome = 'COMPLETED'",
        "update headrace_core.dead_letters set reason = 'OTHER'",
        "insert into headrace_core.kinds (kind, schema_hash, queue) values ('a', 'b', 'c')",
        "delete from headrace_core.queues",
        "update headrace_core.consumers set draining = true",
        "delete from headrace_core.consumers",
        "select * from headrace_core.inference",
    ],
    "consumer": [
        "delete from headrace_core.units",
        "delete from headrace_core.events",
        "delete from headrace_core.attempts",
        "delete from headrace_core.dead_letters",
        "select * from headrace_core.events",
        "update headrace_core.units set payload = '1'",
        "update headrace_core.units set namespace = 'other'",
        "update headrace_core.units set generation = 7",
        f"insert into headrace_core.units (task_id, idempotency_key) values ({ANY_TASK}, 'a')",
        "update headrace_core.dead_letters set resolved_at = now()",
        "update headrace_core.queues set paused_at = now()",
        "delete from headrace_core.queues",
        "delete from headrace_core.kinds",
        "select * from headrace_core.streams",
        "select * from headrace_core.retention",
    ],
    "status": [
        "update headrace_core.units set state = 'CANCELLED'",
        "select 1 from headrace_core.units for update",
        "delete from headrace_core.units",
        f"insert into headrace_core.units (task_id) values ({ANY_TASK})",
        f"insert into headrace_core.events (task_id) values ({ANY_TASK})",
        "update headrace_core.queues set paused_at = now()",
        "delete from headrace_core.consumers",
        "update headrace_core.inference set checked_at = now()",
        "insert into headrace_core.dead_letters (id) values ('a')",
        "select message from headrace_core.dead_letters",
        "select * from headrace_core.kinds",
        "select * from headrace_core.streams",
    ],
    "reader": [
        "select * from headrace_core.units",
        "select * from headrace_core.task_records",
        "delete from headrace.tasks",
        "update headrace.tasks set state = 'CANCELLED'",
    ],
}
# Nobody but the owner: the schema, the ledger of it, the grants, the audit, and the server itself.
FORBIDDEN_TO_ALL = [
    "alter table headrace_core.units add extra text",
    "drop table headrace_core.events",
    "truncate headrace_core.units",
    "create table headrace_core.mine (id int)",
    "create table headrace.mine (id int)",
    "create function headrace_core.mine() returns int language sql as 'select 1'",
    "alter view headrace.tasks set (security_barrier = true)",
    "create trigger mine before insert on headrace_core.units execute function suppress_redundant_updates_trigger()",
    "insert into headrace_core.migrations (version) values ('9999_mine')",
    "delete from headrace_core.migrations",
    "select headrace_core.grant_services()",
    "select * from headrace_core.audit",
    "select who from headrace_core.audit",
    "create role mine",
    "copy headrace.tasks to program 'true'",
    "select pg_read_file('/etc/hostname')",
]
_TABLE = [(role, sql) for role, own in FORBIDDEN.items() for sql in [*own, *FORBIDDEN_TO_ALL]]


@pytest.mark.parametrize(("role", "sql"), _TABLE)
async def test_what_a_service_does_not_need_is_refused(forbidding_url: str, role: str, sql: str) -> None:
    async with await psycopg.AsyncConnection.connect(forbidding_url) as connection:
        await connection.execute(f"set role headrace_{role}".encode())
        with pytest.raises(sqlstate.InsufficientPrivilege):
            await connection.execute(sql.encode(), prepare=False)


@pytest.mark.parametrize(
    "sql",
    [
        f"insert into headrace_core.audit as a (id, who, peer, action, target, after, outcome)"
        f" values ({ANY_TASK}, 'a', 'p', 'pause', 'q', '1', 'OK') on conflict (id)"
        " do update set after = coalesce(excluded.after, a.after), outcome = excluded.outcome",
        "delete from headrace_core.audit where ctid = any(array("
        "select ctid from headrace_core.audit where at < now() order by at limit 1 for update skip locked))",
    ],
)
async def test_the_producer_adds_to_the_audit_and_removes_what_is_old(forbidding_url: str, sql: str) -> None:
    async with await psycopg.AsyncConnection.connect(forbidding_url) as connection:
        await connection.execute("set role headrace_producer")
        await connection.execute(sql.encode(), prepare=False)
        await connection.rollback()


async def test_the_reader_reads_the_public_views(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("set role headrace_reader")
        for view in ("tasks", "shards", "attempts", "dead_letters", "audit"):
            await connection.execute(f"select * from headrace.{view}".encode())
