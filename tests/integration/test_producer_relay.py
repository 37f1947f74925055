"""The relay on a real broker: what is committed reaches the stream, what is overdue ends, what is lost comes back."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import dead_letter_pb2, producer_pb2, queue_pb2
from headrace_core.bus.broker_status import look
from headrace_core.bus.connection import Bus
from headrace_core.bus.control import subscribe_cancel
from headrace_core.bus.dead_letters import read_dead_letter
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.wakes import WakeHint, subscribe_wakes
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks.model import Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.renew import renew
from headrace_core.tasks.settle import settle
from tests.factories import a_holder, claimed, row_of, submitted
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, connected_bus, running_producer

NAMES = StreamNames()


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connected_bus(nats_url) as bus:
        yield bus


@pytest_asyncio.fixture
async def producer(database_url: str, nats_url: str) -> AsyncIterator[Harness]:
    async with running_producer(database_url, nats_url) as harness:
        await eventually(lambda: harness.service._publisher.ready)
        yield harness


async def messages(bus: Bus, queue: str) -> int:
    view = (await look(bus, NAMES)).queues.get(queue)
    return view.pending if view else 0


async def is_published(producer: Harness, task_id: str) -> bool:
    return (await row_of(producer.db, UUID(task_id)))["published_in"] is not None


def at(**delta: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.now(UTC) + timedelta(**delta))
    return timestamp


async def test_a_committed_task_is_published_once_and_noted(producer: Harness, bus: Bus) -> None:
    task = (await producer.submit()).task
    await eventually(lambda: is_published(producer, task.id))
    assert await messages(bus, "default") == 1
    assert (await row_of(producer.db, UUID(task.id)))["dispatch"] == 1


async def test_what_another_process_committed_and_did_not_publish_is_swept(producer: Harness, bus: Bus) -> None:
    task = await submitted(producer.db)
    await eventually(lambda: is_published(producer, str(task.id)))
    assert await messages(bus, "default") == 1


async def test_a_delayed_task_is_published_when_it_is_due(producer: Harness, bus: Bus) -> None:
    task = (await producer.submit(run_at=at(seconds=1.5))).task
    await producer.submit(queue="brief")
    await eventually(lambda: messages(bus, "brief"))
    assert await messages(bus, "default") == 0
    await eventually(lambda: is_published(producer, task.id))
    assert await messages(bus, "default") == 1


async def test_a_paused_queue_is_not_published_until_it_goes_on(producer: Harness, bus: Bus) -> None:
    await producer.queues.PauseQueue(queue_pb2.PauseQueueRequest(name="brief"))
    task = (await producer.submit(queue="brief")).task
    other = (await producer.submit()).task
    await eventually(lambda: is_published(producer, other.id))
    assert not await is_published(producer, task.id)
    await producer.queues.ResumeQueue(queue_pb2.ResumeQueueRequest(name="brief"))
    await eventually(lambda: is_published(producer, task.id))
    assert await messages(bus, "brief") == 1


async def test_a_task_past_its_deadline_expires(producer: Harness) -> None:
    waiting = (await producer.submit(deadline=at(seconds=1))).task
    running = (await producer.submit(deadline=at(seconds=1))).task
    await claimed(producer.db, a_holder(), UUID(running.id))

    async def have_expired() -> bool:
        rows = [await row_of(producer.db, UUID(task.id)) for task in (waiting, running)]
        return [row["state"] for row in rows] == ["EXPIRED", "EXPIRED"]

    await eventually(have_expired)
    assert (await row_of(producer.db, UUID(running.id)))["reason"] == "DEADLINE_EXCEEDED"


async def test_a_lease_that_nobody_renews_is_taken_over_and_one_that_is_renewed_is_not(producer: Harness) -> None:
    dead, alive = [(await producer.submit(queue="brief")).task for _ in range(2)]
    await claimed(producer.db, a_holder(), UUID(dead.id))
    held = await claimed(producer.db, a_holder(), UUID(alive.id))

    async def taken_over() -> bool:
        assert await renew(producer.db, [held.lease])
        row = await row_of(producer.db, UUID(dead.id))
        return row["state"] == "PENDING" and row["published_in"] is not None

    await eventually(taken_over, within=15)
    row = await row_of(producer.db, UUID(dead.id))
    assert (row["interruptions"], row["failures"], row["resumed"], row["dispatch"]) == (1, 0, True, 2)


async def test_tasks_submitted_while_the_broker_is_away_are_published_on_its_return(
    database_url: str, nats_server: NatsServer
) -> None:
    async with running_producer(database_url, nats_server.url) as producer, connected_bus(nats_server.url) as bus:
        await nats_server.stop()
        await eventually(lambda: not producer.service._publisher.ready)
        task = (await producer.submit()).task
        await nats_server.start()
        await eventually(lambda: is_published(producer, task.id), within=20)
        assert await messages(bus, "default") == 1


async def test_watchers_and_consumers_are_told_at_once(producer: Harness, bus: Bus) -> None:
    wakes: list[WakeHint] = []
    cancelled: list[UUID] = []
    watch = await subscribe_wakes(bus, NAMES, wakes.extend)
    listen = await subscribe_cancel(bus, NAMES, cancelled.extend)
    await bus.flush()
    task = (await producer.submit()).task
    await eventually(lambda: (UUID(task.id), 1) in wakes)
    await producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=task.id))
    await eventually(lambda: (UUID(task.id), 2) in wakes and UUID(task.id) in cancelled)
    await watch.unsubscribe()
    await listen.unsubscribe()


async def failed(producer: Harness) -> str:
    task = (await producer.submit()).task
    unit = await claimed(producer.db, a_holder(), UUID(task.id))
    error = error_json("NON_RETRYABLE", "ValueError", "boom")
    settled = await settle(producer.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)])
    return settled.answers[0].dead_letter_id or ""


async def test_the_dead_letter_stream_agrees_with_postgres(producer: Harness, bus: Bus) -> None:
    kept, closed = await failed(producer), await failed(producer)

    async def entry(letter_id: str) -> Any:
        return await read_dead_letter(bus, NAMES, "default", letter_id)

    await eventually(lambda: entry(kept))
    await eventually(lambda: entry(closed))
    found = await entry(kept)
    assert (found.headers["Headrace-Reason"], found.headers["Headrace-Attempts"]) == ("NON_RETRYABLE", "1")
    await producer.letters.DiscardDeadLetters(dead_letter_pb2.DiscardDeadLettersRequest(ids=[closed]))

    async def is_removed() -> bool:
        return await entry(closed) is None

    await eventually(is_removed)
    assert await entry(kept) is not None
    letter = await producer.letters.GetDeadLetter(dead_letter_pb2.GetDeadLetterRequest(id=kept))
    assert letter.dead_letter.HasField("publish_time")


async def test_two_replicas_publish_each_task_once(database_url: str, nats_url: str, bus: Bus) -> None:
    async with running_producer(database_url, nats_url) as one, running_producer(database_url, nats_url) as other:
        await eventually(lambda: one.service._publisher.ready and other.service._publisher.ready)
        tasks = await asyncio.gather(*(replica.submit() for replica in (one, other) for _ in range(50)))
        swept = [await submitted(one.db, id=uuid4()) for _ in range(20)]
        for answer in tasks:
            await eventually(lambda task_id=answer.task.id: is_published(one, task_id))  # type: ignore[misc]
        for task in swept:
            await eventually(lambda task_id=str(task.id): is_published(one, task_id))  # type: ignore[misc]
        assert await messages(bus, "default") == 120
