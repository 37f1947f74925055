"""Submitting while Postgres is away, slow, or silent about a commit: never an OK, never a second task."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from urllib.parse import urlsplit

import grpc
import pytest_asyncio

from headrace.v1 import producer_pb2
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, refused, running_producer


@pytest_asyncio.fixture
async def wire(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(urlsplit(database_url).port or 5432) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def producer(database_url: str, wire: Proxy) -> AsyncIterator[Harness]:
    async with running_producer(wire.url(database_url), own_url=database_url) as harness:
        yield harness
        await wire.restore()


def request(key: str = "k") -> producer_pb2.SubmitTaskRequest:
    return producer_pb2.SubmitTaskRequest(kind="plain", idempotency_key=key)


async def count_of(producer: Harness) -> int:
    (row,) = await producer.db.fetch("select count(*) as n from headrace_core.units")
    return int(row["n"])


async def test_without_postgres_a_submit_is_unavailable_within_its_deadline(producer: Harness, wire: Proxy) -> None:
    await producer.submit(idempotency_key="before")
    await wire.cut()
    started = monotonic()
    refusal = await refused(producer.tasks.SubmitTask(request(), timeout=1.5))
    assert monotonic() - started < 1.5
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert refusal.retry_after is not None
    assert await count_of(producer) == 1
    await wire.restore()
    answer = await eventually(
        lambda: producer.tasks.SubmitTask(request(), timeout=5), within=20, ignoring=(grpc.aio.AioRpcError,)
    )
    assert answer.task.id
    assert await count_of(producer) == 2


async def test_without_postgres_a_batch_and_a_cancellation_are_unavailable_too(producer: Harness, wire: Proxy) -> None:
    task = (await producer.submit()).task
    await wire.cut()
    batch = producer_pb2.SubmitTasksRequest(requests=[request("a"), request("b")])
    refusals = await asyncio.gather(
        refused(producer.tasks.SubmitTasks(batch, timeout=3)),
        refused(producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=task.id), timeout=3)),
    )
    assert {refusal.code for refusal in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert all(refusal.retry_after is not None for refusal in refusals)


async def test_an_unconfirmed_commit_is_no_ok_and_its_repetition_finds_the_task(producer: Harness, wire: Proxy) -> None:
    await producer.submit(idempotency_key="before")
    wire.hold_replies()
    refusal = await refused(producer.tasks.SubmitTask(request(), timeout=3))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    # The silent connections break, and new ones work: the commit that may have happened is repeated with its ids.
    await wire.cut()
    await wire.restore()
    answers = [
        await eventually(
            lambda: producer.tasks.SubmitTask(request(), timeout=5), within=20, ignoring=(grpc.aio.AioRpcError,)
        )
        for _ in range(2)
    ]
    assert answers[0].task.id == answers[1].task.id
    assert answers[1].created is False
    assert await count_of(producer) == 2


async def test_a_commit_that_breaks_off_is_repeated_for_a_caller_who_still_waits(
    producer: Harness, wire: Proxy
) -> None:
    await producer.submit(idempotency_key="before")
    wire.hold_replies()
    call = asyncio.ensure_future(producer.tasks.SubmitTask(request(), timeout=10))
    await eventually(lambda: producer.service._commits._commits)
    await wire.cut()
    await wire.restore()
    answer = await call
    assert answer.created
    assert await count_of(producer) == 2


async def test_a_caller_that_leaves_before_its_commit_leaves_nothing_behind(producer: Harness, wire: Proxy) -> None:
    await producer.submit(idempotency_key="before")
    wire.hold()
    calls = [asyncio.ensure_future(producer.tasks.SubmitTask(request(f"k{i}"), timeout=10)) for i in range(20)]
    await eventually(lambda: producer.service._commits._waiting >= 1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await wire.cut()
    await wire.restore()
    await eventually(
        lambda: producer.tasks.SubmitTask(request("after"), timeout=5), within=20, ignoring=(grpc.aio.AioRpcError,)
    )
    assert await count_of(producer) < 12
