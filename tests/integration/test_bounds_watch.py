"""What bounds watches (G8): streams, what waits for slow watchers, and what a client reads when a limit is reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from headrace.v1 import status_pb2
from headrace_core.db.pool import Database
from headrace_core.errors import ServerLimit
from headrace_core.tasks.model import Complete, Report
from headrace_core.tasks.reading import TaskFilter
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from status.filters import WatchStart
from status.hub import Hub
from tests.factories import a_holder, claimed, submitted
from tests.fixtures.waiting import eventually
from tests.integration.rpc_rig import Status, detail, refusal, serving, watch_task
from tests.integration.status_rig import SWEEP_ONLY, rig
from tests.integration.test_status_service import rest_of, stub_of
from tests.integration.test_status_service import serving as serving_status

HOLDER = a_holder()


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def test_streams_of_one_connection_are_bounded_and_others_have_room() -> None:
    service = Status()
    async with serving(status=service, max_streams_per_client=2) as (_server, channel):
        open_ones = [watch_task(channel) for _ in range(2)]
        for stream in open_ones:
            assert (await stream.read()).event.sequence == 1
        refused, status = await refusal(anext(aiter(watch_task(channel))))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = detail(status, error_details_pb2.ErrorInfo)
        assert (info.reason, dict(info.metadata)) == ("SERVER_LIMIT", {"limit": "2"})
        assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(service.address, options=own_connection) as other:
            assert (await watch_task(other).read()).event.sequence == 1
        open_ones[0].cancel()
        await eventually(lambda: opened(channel), what="the place of the stream that was closed")


async def opened(channel: grpc.aio.Channel) -> bool:
    try:
        return bool((await watch_task(channel).read()).event.sequence)
    except grpc.aio.AioRpcError:
        return False


@pytest.mark.parametrize(
    ("limits", "limit"),
    [({"max_watches": 1}, "1"), ({"max_tasks": 1}, "1"), ({"max_filter_watches": 1}, "1")],
    ids=["streams", "tasks", "filters"],
)
async def test_each_limit_of_watching_is_named_with_its_value(
    database_url: str, limits: dict[str, int], limit: str
) -> None:
    async with rig(database_url, SWEEP_ONLY, **limits) as status:
        tasks = [await submitted(status.db) for _ in range(2)]
        if "max_filter_watches" in limits:
            streams = [status.open_with(WatchStart((), wanted=TaskFilter("default")))] * 1
            streams.append(status.open_with(WatchStart((), wanted=TaskFilter("default", kind="plain"))))
        else:
            streams = [status.open(task.id) for task in tasks]
        await streams[0].next()
        with pytest.raises(ServerLimit) as caught:
            await streams[1].next()
        assert caught.value.metadata == {"limit": limit}
        assert f"{limit} " in caught.value.message
        assert caught.value.retry_after
        for stream in streams:
            await stream.close()


def has_read(hub: Hub, sequence: int) -> bool:
    """Whether every watched task has been read up to `sequence`."""
    return all(topic.cursor >= sequence for topic in hub._topics.values())


async def test_events_of_all_tasks_together_are_bounded(database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY, topic_bytes=50_000, buffered_bytes=80_000) as status:
        tasks = [await submitted(status.db) for _ in range(4)]
        streams = [status.open(task.id) for task in tasks]
        units = [await claimed(status.db, HOLDER, task.id) for task in tasks]
        for stream in streams:
            await stream.next()
        most = 0
        for index in range(8):
            text = "z" * 10_000
            await report(status.db, [Report(unit.lease, "output", text=text, byte_offset=index) for unit in units])
            await eventually(lambda: has_read(status.hub, index + 3))  # noqa: B023 - called before the next round
            most = max(most, status.hub.buffered_bytes)
        assert 50_000 < most <= 80_000
        await settle(status.db, [Complete(unit.lease, b"{}") for unit in units])
        for stream in streams:
            events = await stream.rest()
            numbers = [event.sequence for event in events]
            assert numbers == sorted(numbers)
            assert events[-1].sequence == 11
        assert status.hub.buffered_bytes == 0


async def test_a_client_that_does_not_read_costs_a_bounded_memory_and_gets_a_gap(
    db: Database, database_url: str
) -> None:
    """Over the wire: what gRPC itself buffers is bounded too, or the events would all have been taken."""
    async with serving_status(database_url, None, SWEEP_ONLY) as service, stub_of(service) as stub:
        task = await submitted(db)
        stream: Any = stub.WatchTask(status_pb2.WatchTaskRequest(id=str(task.id)))
        assert (await stream.read()).event.HasField("snapshot")
        unit = await claimed(db, HOLDER, task.id)
        text, most = "w" * 60_000, 0
        for index in range(30):
            batch = [Report(unit.lease, "output", text=text, byte_offset=60_000 * (10 * index + n)) for n in range(10)]
            await report(db, batch)
            await eventually(lambda: has_read(service._hub, 10 * index + 12))  # noqa: B023 - called before the next round
            most = max(most, service._hub.buffered_bytes)
        assert most <= SWEEP_ONLY.topic_bytes
        await settle(db, [Complete(unit.lease, b"{}")])
        events = await rest_of(stream)
        kinds = [event.WhichOneof("event") for event in events]
        assert "gap" in kinds
        assert events[kinds.index("gap") + 1].HasField("snapshot")
        assert len(events) < 200
        assert events[-1].sequence == 303
        await eventually(lambda: not service._hub.watched)


async def test_watches_that_are_refused_leave_room_for_calls(db: Database, database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY, max_watches=1) as status:
        task = await submitted(db)
        first = status.open(task.id)
        await first.next()
        refusals = await asyncio.gather(*(status.open(task.id).next() for _ in range(50)), return_exceptions=True)
        assert all(isinstance(refused, ServerLimit) for refused in refusals)
        await first.close()
        again = status.open(task.id)
        assert (await again.next()).HasField("snapshot")
        await again.close()
