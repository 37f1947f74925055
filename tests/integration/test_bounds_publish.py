"""What bounds the way to the broker (G8): what finds no room is left in Postgres, and published from there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from headrace.v1 import producer_pb2
from headrace_core.bus.broker_status import look
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.tasks.model import Publication, UnitId, Wake
from producer import announcing, publishing
from producer.announcing import Announcer
from producer.publishing import TaskPublisher
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, connected_bus, running_producer

NAMES = StreamNames()


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connected_bus(nats_url) as connected:
        yield connected


def publications(number: int) -> list[Publication]:
    return [Publication(UnitId(uuid4()), "default", 2, resumed=False, dispatch=1) for _ in range(number)]


async def test_the_queue_of_publications_takes_no_more_than_it_may(
    database_url: str, nats_url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_QUEUED", 10)
    async with running_producer(database_url, nats_url) as producer:
        publisher = TaskPublisher(producer.db, bus, NAMES)  # nobody runs it: it only fills
        publisher.offer(publications(7))
        assert publisher.room == 3
        publisher.offer(publications(7))
        assert publisher.room == 0
        publisher.offer(publications(7))
        assert len(publisher._queued) == 10


async def test_tasks_that_found_no_room_in_the_queue_reach_the_stream_all_the_same(
    database_url: str, nats_url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_QUEUED", 10)
    async with running_producer(database_url, nats_url) as producer:
        await eventually(lambda: producer.service._publisher.ready)
        requests = [producer_pb2.SubmitTaskRequest(kind="plain") for _ in range(100)]
        response = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=requests))
        ids = [UUID(result.response.task.id) for result in response.results]
        await eventually(lambda: all_published(producer, ids), within=20)
        view = (await look(bus, NAMES)).queues["default"]
        assert view.pending >= 100


async def all_published(producer: Harness, ids: list[UUID]) -> bool:
    (row,) = await producer.db.fetch(
        "select count(*) as n from headrace_core.units where task_id = any(%(ids)s) and published_in is not null",
        {"ids": ids},
    )
    return bool(row["n"] == len(ids))


async def test_wakes_beyond_the_bound_are_dropped_and_not_kept(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "MAX_QUEUED", 10)
    announcer = Announcer(bus, NAMES)  # nobody runs it
    for _ in range(100):
        announcer.cancelled([Wake(uuid4(), 1)])
    assert (len(announcer._wakes), len(announcer._cancelled)) == (10, 10)
