"""Connections that are ended for their age: watches resume without a loss, calls do not notice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace import Client
from headrace.errors import HeadraceError
from headrace.rpc import Connection
from headrace.v1 import event_pb2, producer_pb2, producer_pb2_grpc
from headrace_core.db.pool import Database
from headrace_core.rpc.server import ConnectionAge
from headrace_core.settings.environment import load_settings
from headrace_core.tasks.kinds import register_kinds
from headrace_core.tasks.model import Complete, Report
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from producer.app import ProducerService
from status.app import StatusService
from tests.factories import a_holder, claimed, submitted
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.producer_harness import KINDS

ROTATIONS = 4
HOLDER = a_holder()
AGED = {"MAX_CONNECTION_AGE_SECONDS": "1", "MAX_CONNECTION_AGE_GRACE_SECONDS": "1"}


class CountingProxy(Proxy):
    """Knows how many connections came."""

    accepted = 0

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        super()._accept(reader, writer)


@asynccontextmanager
async def serving(build: Callable[[Any], Any], database_url: str, **more: str) -> AsyncIterator[CountingProxy]:
    """A service without a broker; what comes is the way to it."""
    environ = {"DATABASE_URL": database_url, "HTTP_LISTEN": "127.0.0.1:0", "BROKER": "none", **more}
    settings = load_settings(
        {f"HEADRACE_{name}": value for name, value in environ.items()}, default_listen="127.0.0.1:0", cwd=Path("/")
    )
    service = build(settings)
    try:
        await service.start()
        async with CountingProxy(int(service.grpc_address.rpartition(":")[2])) as proxy:
            yield proxy
        await service.drain()
    finally:
        await service.stop()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    await register_kinds(database, KINDS)
    yield database
    await database.close()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[grpc.StatusCode | None]:
    """How the streams of the SDK ended that did not end well."""
    seen: list[grpc.StatusCode | None] = []
    listen = Connection.listen

    async def noted(self: Connection, *arguments: Any) -> AsyncIterator[Any]:
        try:
            async for message in listen(self, *arguments):
                yield message
        except HeadraceError as error:
            seen.append(error.code)
            raise

    monkeypatch.setattr(Connection, "listen", noted)
    return seen


async def test_a_watch_over_many_connections_loses_and_repeats_nothing(
    db: Database, database_url: str, ends: list[grpc.StatusCode | None]
) -> None:
    task = await submitted(db)
    unit = await claimed(db, HOLDER, task.id)
    async with (
        serving(StatusService, database_url, **AGED) as way,
        Client("127.0.0.1:1", f"127.0.0.1:{way.port}") as client,
    ):

        async def watch() -> list[event_pb2.TaskEvent]:
            return [event async for event in client.watch(str(task.id))]

        async def works_on() -> bool:
            await report(db, [Report(unit.lease, "progress", fraction=0.5)])
            return len(ends) >= ROTATIONS

        watching = asyncio.create_task(watch())
        await eventually(works_on, within=40)
        await settle(db, [Complete(unit.lease, b"{}")])
        async with asyncio.timeout(10):
            seen = await watching
    assert set(ends) == {grpc.StatusCode.UNAVAILABLE}
    assert way.accepted > ROTATIONS
    assert seen[0].HasField("snapshot")
    assert [event.sequence - seen[0].sequence for event in seen] == list(range(len(seen)))
    assert seen[-1].state_change.terminal


async def test_calls_under_load_do_not_notice(db: Database, database_url: str) -> None:
    """Without the SDK's repeats and gRPC's: not one call fails."""
    accepted: set[str] = set()
    without_retries = [("grpc.enable_retries", 0)]
    async with (
        serving(ProducerService, database_url, **AGED) as way,
        grpc.aio.insecure_channel(f"127.0.0.1:{way.port}", options=without_retries) as channel,
    ):
        stub: Any = producer_pb2_grpc.ProducerServiceStub(channel)

        async def submit() -> None:
            while way.accepted <= ROTATIONS:
                answer = await stub.SubmitTask(producer_pb2.SubmitTaskRequest(kind="plain"), timeout=5)
                accepted.add(answer.task.id)

        async with asyncio.timeout(40):
            await asyncio.gather(*(submit() for _ in range(8)))
    (row,) = await db.fetch("select count(*) as tasks from headrace.tasks")
    assert row["tasks"] == len(accepted) > ROTATIONS * 8


def test_by_default_a_connection_may_grow_old() -> None:
    assert ConnectionAge().options() == []
    settings = load_settings({"HEADRACE_MAX_CONNECTION_AGE_SECONDS": "90"}, default_listen="127.0.0.1:0")
    assert dict(ConnectionAge.of(settings).options()) == {
        "grpc.max_connection_age_ms": 90_000,
        "grpc.max_connection_age_grace_ms": 30_000,
    }
