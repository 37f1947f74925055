"""How the group roles come to be: by whoever migrates if he may, else by an operator who is told what to do."""

import asyncio

import psycopg
import pytest

from headrace_core.db.migrate import migrate
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.stack.ports import LOOPBACK
from headrace_core.stack.postgres import Postgres
from headrace_core.tasks.scaling import read_active
from tests.factories import submitted
from tests.privileges.programs import headrace
from tests.producer_harness import running_producer

GROUPS = ["headrace_consumer", "headrace_producer", "headrace_reader", "headrace_status"]


async def _run(url: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def _groups(server: Postgres) -> list[str]:
    async with await psycopg.AsyncConnection.connect(server.url()) as connection:
        found = await connection.execute(
            "select rolname from pg_roles where rolname like 'headrace%' and not rolcanlogin order by 1"
        )
        return [row[0] for row in await found.fetchall()]


async def test_databases_of_one_server_migrated_at_once_share_the_roles(postgres_server: Postgres) -> None:
    names = [f"stage_{number}" for number in range(4)]
    await _run(postgres_server.url(), *(f"create database {name}" for name in names))
    assert await _groups(postgres_server) == []
    await asyncio.gather(*(migrate(postgres_server.url(name)) for name in names))
    assert await _groups(postgres_server) == GROUPS
    for name in names:
        await _run(postgres_server.url(name), "set role headrace_status", "select * from headrace_core.events")


async def test_whoever_may_create_no_roles_is_told_what_an_operator_has_to(postgres_server: Postgres) -> None:
    await _run(postgres_server.url(), "create role plain login", "create database plain owner plain")
    url = f"postgresql://plain@{LOOPBACK}:{postgres_server.port}/plain"
    code, output = await headrace("db", "migrate", "--database-url", url)
    assert code == 0, output
    said = [line for line in output.splitlines() if "are missing" in line]
    assert len(said) == 1, output
    assert "plain may not create roles" in said[0]
    (create,) = [part for part in said[0].split("`") if part.startswith("create role")]

    notes: list[str] = []
    assert await migrate(url, note=notes.append) == []
    assert len(notes) == 1, "it is said again until the roles are there"
    await _run(postgres_server.url(), create)
    notes.clear()
    assert await migrate(url, note=notes.append) == []
    assert notes == []
    await _run(postgres_server.url("plain"), "set role headrace_status", "select * from headrace_core.events")


async def test_grants_that_a_restore_left_out_come_back_with_the_next_migrate(database_url: str) -> None:
    await _run(database_url, "revoke select on headrace_core.events from headrace_status")
    await migrate(database_url)
    await _run(database_url, "set role headrace_status", "select * from headrace_core.events")


async def test_services_that_connect_as_the_owner_go_on(database_url: str) -> None:
    owner = Database(database_url)
    await owner.open()
    try:
        assert (await submitted(owner)).sequence == 1
        async with running_producer(database_url, own_url=database_url, as_owner=True) as producer:
            assert (await producer.submit()).created
    finally:
        await owner.close()


async def test_a_login_that_is_in_no_group_is_a_named_problem(postgres_server: Postgres) -> None:
    await postgres_server.create_database("headrace")
    await migrate(postgres_server.url("headrace"))
    await _run(postgres_server.url(), "create role stranger login")
    stranger = Database(f"postgresql://stranger@{LOOPBACK}:{postgres_server.port}/headrace")
    await stranger.open()
    try:
        with pytest.raises(DatabaseUnavailable, match="permission denied for schema headrace_core; the user of HEADR"):
            await read_active(stranger)
    finally:
        await stranger.close()
    url = f"postgresql://stranger@{LOOPBACK}:{postgres_server.port}/headrace"
    code, output = await headrace("db", "verify", "--database-url", url)
    assert (code, "Traceback" in output) == (1, False), output
    assert "permission denied for schema headrace_core" in output
