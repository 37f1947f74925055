"""PgBouncer between the services and Postgres: session mode works and keeps every setting, other modes are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from headrace import Client
from headrace_core.db.errors import DatabaseUnavailable
from headrace_core.db.pool import Database, Row
from headrace_core.settings.errors import SettingsError
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from tests.fixtures.fleet import Fleet, fleet
from tests.fixtures.pgbouncer import PgBouncer
from tests.fixtures.waiting import eventually

EXPECTED = {
    "synchronous_commit": "on",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "timezone": "UTC",
}
_NAMED = ", ".join(f"current_setting('{name}') as {name.lower()}" for name in EXPECTED)
# It takes a moment, so that as many sessions have to answer as there are callers.
SETTINGS = f"select pg_backend_pid() as pid, {_NAMED} from pg_sleep(0.2)"


@asynccontextmanager
async def running(url: str, folder: Path, **settings: str) -> AsyncIterator[PgBouncer]:
    log = StackLog(folder / "pgbouncer.log")
    pooler = PgBouncer(url, folder, log, **settings)
    try:
        await pooler.start()
        yield pooler
    finally:
        await pooler.stop()
        log.close()


@pytest.fixture
async def pooler(database_url: str, tmp_path: Path) -> AsyncIterator[PgBouncer]:
    """In session mode."""
    async with running(database_url, tmp_path) as started:
        yield started


@asynccontextmanager
async def opened(url: str, size: int = 4) -> AsyncIterator[Database]:
    db = Database(url, max_size=size)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def settings_of(db: Database, connections: int) -> list[Row]:
    """What is set on so many connections at once."""
    rows = await asyncio.gather(*(db.fetch(SETTINGS) for _ in range(connections)))
    return [row for answer in rows for row in answer]


async def set_for_everybody(url: str, name: str, value: str) -> None:
    """The database's own default, which a new session begins with."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        database = connection.info.dbname
        await connection.execute(f"alter database {database} set {name} = {value}".encode())


# -- settings ----------------------------------------------------------------------------------------------------------


async def test_the_settings_are_in_force_on_every_connection_and_again_after_a_reset(
    database_url: str, pooler: PgBouncer
) -> None:
    await set_for_everybody(database_url, "synchronous_commit", "off")
    async with opened(pooler.url) as db:
        first = await settings_of(db, 4)
    assert len({row["pid"] for row in first}) == 4
    async with opened(pooler.url) as db:
        again = await settings_of(db, 4)
    assert {row["pid"] for row in again} & {row["pid"] for row in first}, "sessions were used again after their reset"
    for row in [*first, *again]:
        assert {name: row[name] for name in EXPECTED} == EXPECTED


async def test_the_next_client_of_a_session_finds_nothing_of_ours(database_url: str, pooler: PgBouncer) -> None:
    await set_for_everybody(database_url, "synchronous_commit", "off")
    async with opened(pooler.url, size=1) as db:
        (ours,) = await settings_of(db, 1)
    async with await psycopg.AsyncConnection.connect(pooler.url, autocommit=True) as other:
        cursor = await other.execute("select pg_backend_pid(), current_setting('synchronous_commit')")
        assert await cursor.fetchone() == (ours["pid"], "off")


@pytest.mark.parametrize("of_the_database", ["off", "local", "remote_write", "on", "remote_apply"])
async def test_synchronous_commit_is_at_least_on_and_more_where_the_operator_wants_it(
    database_url: str, of_the_database: str
) -> None:
    await set_for_everybody(database_url, "synchronous_commit", of_the_database)
    async with opened(database_url) as db:
        (row,) = await settings_of(db, 1)
    assert row["synchronous_commit"] == ("remote_apply" if of_the_database == "remote_apply" else "on")


# -- the services ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def services(nats_url: str, pooler: PgBouncer, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A producer, a consumer and a status service that know the pooler only."""
    async with fleet(pooler.url, nats_url, tmp_path) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name)
        await services.start()
        yield services


async def goes_on(client: Client, number: int) -> None:
    """Submit, run, watch to the end, read the result, with the patience of an ordinary client."""
    task = await client.submit("counts", {"steps": number}, idempotency_key=f"number-{number}", timeout=15)
    assert await client.result(task.id, timeout=30) == {"steps": number}


async def test_services_work_through_it_and_outlive_its_death(services: Fleet, pooler: PgBouncer) -> None:
    async with services.client() as client:
        await goes_on(client, 1)
        watched = await client.submit("counts", {"steps": 40, "pause": 0.1})
        watch = asyncio.create_task(client.result(watched.id, timeout=40))
        await eventually(lambda: _has_begun(client, watched.id))
        await pooler.kill()
        await pooler.start()
        await goes_on(client, 2)
        assert await watch == {"steps": 40}
        assert all(service.running for service in services.services.values())


async def _has_begun(client: Client, task_id: str) -> bool:
    return bool((await client.get(task_id)).progress.fraction)


async def test_an_operator_may_reload_pause_and_resume_it(services: Fleet, pooler: PgBouncer) -> None:
    async with services.client() as client:
        await goes_on(client, 1)
        pooler.configure(default_pool_size="50")
        await pooler.ask("RELOAD")
        await goes_on(client, 2)
        # PAUSE alone waits until every client has left. KILL cuts them and lets none in until RESUME.
        await pooler.ask(f"KILL {pooler.database}")
        submit = asyncio.create_task(goes_on(client, 3))
        await eventually(lambda: _waits(pooler), what="the services wait at the pooler")
        assert not submit.done()
        await pooler.ask(f"RESUME {pooler.database}")
        await submit
        assert all(service.running for service in services.services.values())


async def _waits(pooler: PgBouncer) -> bool:
    return any(row["cl_waiting"] for row in await pooler.ask("SHOW POOLS"))


async def test_a_full_pooler_is_a_database_that_is_away(database_url: str, tmp_path: Path) -> None:
    async with (
        running(database_url, tmp_path, default_pool_size="1", query_wait_timeout="1") as pooler,
        opened(pooler.url, size=1) as db,
        opened(pooler.url, size=1) as late,
    ):
        assert await db.fetch("select 1 as n") == [{"n": 1}]
        with pytest.raises(DatabaseUnavailable):
            await late.fetch("select 1 as n", timeout=2)


# -- other modes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["0", "1"], ids=["last-used-first", "round-robin"])
@pytest.mark.parametrize("busy", [0, 3])
async def test_transaction_mode_is_known_with_the_first_connection(
    database_url: str, tmp_path: Path, order: str, busy: int
) -> None:
    async with running(database_url, tmp_path, pool_mode="transaction", server_round_robin=order) as pooler:
        others = [asyncio.create_task(_use(pooler.url)) for _ in range(busy)]
        try:
            async with opened(pooler.url) as db:
                with pytest.raises(SettingsError, match="use pool_mode = session"):
                    await db.fetch("select 1 as n")
        finally:
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize("busy", [0, 3])
async def test_session_mode_is_never_taken_for_another(database_url: str, pooler: PgBouncer, busy: int) -> None:
    others = [asyncio.create_task(_use(pooler.url)) for _ in range(busy)]
    try:
        for _ in range(10):
            async with opened(pooler.url) as db:
                assert await db.fetch("select 1 as n") == [{"n": 1}]
    finally:
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _use(url: str) -> None:
    """Another client, that says one short thing after the other."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=None) as connection:
        while True:
            await connection.execute("select 1")


async def test_each_service_refuses_to_start_behind_transaction_mode(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with (
        running(database_url, tmp_path, pool_mode="transaction") as pooler,
        fleet(pooler.url, nats_url, tmp_path) as services,
    ):
        for name in ("producer", "consumer", "status"):
            service = services.add(name)
            with pytest.raises(StackError, match="HEADRACE_DATABASE_URL leads to a pooler"):
                await service.start()
            assert not service.running
