"""QueueService over gRPC."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import grpc
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import queue_pb2 as pb
from headrace_core.tasks.claim import claim
from headrace_core.tasks.model import Delivered, UnitId, Verdict
from tests.factories import a_holder, claimed, row_of
from tests.producer_harness import Harness, refused, running_producer


@pytest_asyncio.fixture
async def producer(database_url: str) -> AsyncIterator[Harness]:
    async with running_producer(database_url) as harness:
        yield harness


async def test_queues_are_listed_by_name_with_their_limits(producer: Harness) -> None:
    found = (await producer.queues.ListQueues(pb.ListQueuesRequest())).queues
    assert [queue.name for queue in found] == ["brief", "choked", "default", "tiny"]
    assert [queue.limits.max_backlog for queue in found] == [1_000_000, 1_000_000, 1_000_000, 2]
    assert found[0].limits.ack_wait.ToTimedelta() == timedelta(seconds=0.5)


async def test_the_figures_of_a_queue(producer: Harness) -> None:
    later = Timestamp()
    later.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    tasks = [(await producer.submit()).task for _ in range(3)]
    await producer.submit(run_at=later)
    await claimed(producer.db, a_holder(), UUID(tasks[0].id))
    queue = (await producer.queues.GetQueue(pb.GetQueueRequest(name="default"))).queue
    assert (queue.backlog, queue.delayed, queue.in_flight, queue.dead_letters) == (2, 1, 1, 0)
    assert queue.submit_rate == 4 / 60
    assert not queue.paused
    assert not queue.HasField("pause_time")


async def test_a_paused_queue_accepts_and_starts_nothing(producer: Harness) -> None:
    for _ in range(2):
        queue = (await producer.queues.PauseQueue(pb.PauseQueueRequest(name="default"))).queue
        assert queue.paused
        assert queue.HasField("pause_time")
    task = (await producer.submit()).task
    (answer,), _ = await claim(producer.db, [Delivered(UnitId(UUID(task.id)), 1)], a_holder())
    assert answer.verdict is Verdict.PAUSED
    assert not (await producer.queues.ResumeQueue(pb.ResumeQueueRequest(name="default"))).queue.paused
    await claimed(producer.db, a_holder(), UUID(task.id))


async def test_a_purge_cancels_more_than_one_batch(producer: Harness) -> None:
    running = (await producer.submit()).task
    await claimed(producer.db, a_holder(), UUID(running.id))
    for _ in range(3):
        await producer.submit(queue="brief")
    await producer.db.fetch(
        "insert into headrace_core.units"
        " (task_id, unit, namespace, kind, queue, priority, due_at, max_attempts, max_crashes, payload, sequence)"
        " select gen_random_uuid(), -1, 'n', 'plain', 'default', 2, now(), 3, 3, '{}', 1"
        " from generate_series(1, 1200) returning 1"
    )
    response = await producer.queues.PurgeQueue(pb.PurgeQueueRequest(name="default"))
    assert response.purged == 1200
    assert (await producer.queues.PurgeQueue(pb.PurgeQueueRequest(name="default"))).purged == 0
    assert (await row_of(producer.db, UUID(running.id)))["state"] == "PROCESSING"
    assert (await producer.queues.GetQueue(pb.GetQueueRequest(name="brief"))).queue.backlog == 3


async def test_an_unknown_queue_is_not_found(producer: Harness) -> None:
    for name, code, reason in (
        ("nowhere", grpc.StatusCode.NOT_FOUND, "UNKNOWN_QUEUE"),
        ("\0", grpc.StatusCode.NOT_FOUND, "UNKNOWN_QUEUE"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS"),
    ):
        for call in (
            producer.queues.GetQueue(pb.GetQueueRequest(name=name)),
            producer.queues.PauseQueue(pb.PauseQueueRequest(name=name)),
            producer.queues.ResumeQueue(pb.ResumeQueueRequest(name=name)),
            producer.queues.PurgeQueue(pb.PurgeQueueRequest(name=name)),
        ):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (code, reason)
