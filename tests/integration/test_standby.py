"""A synchronous standby: what was accepted is on it, and after a fail-over everything accepted completes, once (G1)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from headrace import Client
from headrace.errors import UnavailableError
from headrace_core.db.errors import DatabaseUnavailable
from headrace_core.db.pool import Database
from headrace_core.stack.logs import StackLog
from headrace_core.stack.ports import LOOPBACK
from headrace_core.stack.postgres import Postgres
from tests.fixtures.backups import DATABASE, SETTINGS, CopiedPostgres, copied_postgres
from tests.fixtures.fleet import Fleet, fleet
from tests.fixtures.waiting import eventually

WITHIN = 40.0
SYNC = "select count(*) from pg_stat_replication where sync_state = 'sync' and state = 'streaming'"


@dataclass
class Pair:
    """A primary that waits for its standby with every commit."""

    primary: CopiedPostgres
    standby: Postgres

    @property
    def url(self) -> str:
        """Whichever of the two may be written to, as operators name it."""
        hosts = ",".join(f"{LOOPBACK}:{server.port}" for server in (self.primary.server, self.standby))
        return f"postgresql://postgres@{hosts}/{DATABASE}?target_session_attrs=read-write"

    async def fail_over(self) -> None:
        """The primary dies, and the standby takes its place."""
        await self.primary.server.kill()
        assert await _ask(self.standby.url(), "select pg_promote()") is True


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    log = StackLog(tmp_path / "standby.log")
    async with copied_postgres(tmp_path) as primary:
        standby = Postgres(await primary.copy("standby", "--write-recovery-conf"), log, settings=SETTINGS)
        try:
            await standby.start()
            await _ask(primary.server.url(), "alter system set synchronous_standby_names = '*'")
            await _ask(primary.server.url(), "select pg_reload_conf()")
            await eventually(lambda: _ask(primary.server.url(), SYNC), within=10, what="the standby is synchronous")
            yield Pair(primary, standby)
        finally:
            standby.resume()
            await standby.stop()
            log.close()


@pytest.fixture
async def services(pair: Pair, nats_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet(pair.url, nats_url, tmp_path) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name)
        await services.start()
        yield services


async def _ask(url: str, statement: str) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = await connection.execute(statement.encode())
        row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None


async def test_everything_accepted_completes_once_after_a_failover(pair: Pair, services: Fleet) -> None:
    accepted: list[str] = []
    async with services.client() as client:
        held = await client.submit("counts", {"steps": 60, "pause": 0.1})
        submits = [asyncio.create_task(_submit_many(client, worker, accepted)) for worker in range(4)]
        await eventually(lambda: len(accepted) >= 40, within=WITHIN)
        await pair.fail_over()
        before = list(accepted)
        await asyncio.gather(*submits)
        for task_id in accepted:
            await client.result(task_id, timeout=WITHIN)
        assert await client.result(held.id, timeout=WITHIN) == {"steps": 60}
    assert len(before) < len(accepted) == len(set(accepted)), "some were accepted before, some after"
    await _assert_each_ended_once(pair.standby.url(DATABASE), [*accepted, held.id])
    assert all(service.running for service in services.services.values())


async def _submit_many(client: Client, worker: int, accepted: list[str]) -> None:
    """One after the other, each until it is answered: what a client that wants its task does."""
    for number in range(60):
        task = await client.submit("add", {"a": worker, "b": number}, idempotency_key=f"{worker}-{number}", timeout=30)
        accepted.append(task.id)


async def _assert_each_ended_once(url: str, ids: list[str]) -> None:
    db = Database(url, max_size=1)
    await db.open()
    rows = await db.fetch(
        "select task_id, array_agg(state) as states from headrace_core.events where terminal group by task_id"
    )
    await db.close()
    assert {str(row["task_id"]): row["states"] for row in rows} == {task_id: ["COMPLETED"] for task_id in ids}


async def test_nothing_is_accepted_that_the_standby_does_not_have(pair: Pair, services: Fleet) -> None:
    async with services.client() as client:
        pair.standby.pause()
        with pytest.raises(UnavailableError):
            await client.submit("add", {"a": 1, "b": 1}, idempotency_key="k", timeout=3)
        pair.standby.resume()
        task = await client.submit("add", {"a": 1, "b": 1}, idempotency_key="k", timeout=30)
        assert await client.result(task.id, timeout=WITHIN) == {"sum": 2}


async def test_a_commit_that_was_told_not_to_wait_is_not_confirmed_by_asking_again(pair: Pair, services: Fleet) -> None:
    """Postgres shows it as done; an OK to the repeated submit would still be worth nothing."""
    async with services.client() as client:
        pair.standby.pause()
        first = asyncio.create_task(client.submit("add", {"a": 1, "b": 1}, idempotency_key="k", timeout=3))
        await eventually(lambda: _is_there_unconfirmed(pair.primary.server.url(DATABASE)), within=WITHIN)
        with pytest.raises(UnavailableError):
            await first
        with pytest.raises(UnavailableError):
            await client.submit("add", {"a": 1, "b": 1}, idempotency_key="k", timeout=3)
        pair.standby.resume()
        task = await client.submit("add", {"a": 1, "b": 1}, idempotency_key="k", timeout=30)
        assert await client.result(task.id, timeout=WITHIN) == {"sum": 2}


async def _is_there_unconfirmed(url: str) -> bool:
    """End whatever waits for the standby: the services' other writes do, too. True once the task is to be seen."""
    await _ask(url, "select count(pg_terminate_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'")
    return await _ask(url, "select count(*) from headrace.tasks") == 1


async def test_a_connection_to_a_server_that_refuses_writes_is_not_kept(pair: Pair) -> None:
    """An address may lead to a standby for a moment; a pool that kept the connection would stay there for an hour."""
    db = Database(pair.standby.url(DATABASE), max_size=1)
    await db.open()
    try:
        before = await db.fetch("select pg_backend_pid() as pid")
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await db.execute("delete from headrace_core.queues")
        assert await db.fetch("select pg_backend_pid() as pid") != before
    finally:
        await db.close()
