"""A client of the product that submits in calls of 500, several in flight: raw stubs, a key for each task."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import grpc

from bench.gate import Gate, run
from bench.payloads import payload
from headrace.v1 import producer_pb2, producer_pb2_grpc

CALL_SECONDS = 30.0
SAMPLE = 50


def requests(kind: str, numbers: Sequence[int], batch: int) -> list[producer_pb2.SubmitTasksRequest]:
    """The calls that submit tasks with these numbers. A key for each, as the SDK sends it."""
    singles = [
        producer_pb2.SubmitTaskRequest(kind=kind, payload_json=payload(number), idempotency_key=str(uuid.uuid4()))
        for number in numbers
    ]
    return [producer_pb2.SubmitTasksRequest(requests=singles[at : at + batch]) for at in range(0, len(singles), batch)]


async def submit(
    stub: producer_pb2_grpc.ProducerServiceAsyncStub, calls: list[producer_pb2.SubmitTasksRequest], in_flight: int
) -> list[str]:
    """Make the calls; the ids of the accepted tasks. Raises RuntimeError for a refusal."""
    waiting, ids = iter(calls), []

    async def one_by_one() -> None:
        for call in waiting:
            response = await stub.SubmitTasks(call, timeout=CALL_SECONDS)
            for result in response.results:
                if not result.response.created:
                    raise RuntimeError(f"a task was refused: {result.error.message}")
                ids.append(result.response.task.id)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(one_by_one())
    return ids


async def load(
    gate: Gate, *, producer: str, kind: str, tasks: int, warm_up: int, batch: int, in_flight: int
) -> dict[str, Any]:
    """Submit `warm_up` tasks, then, at the word, `tasks`. Requests are built before: that is the client's own time."""
    async with grpc.aio.insecure_channel(producer) as channel:
        stub: producer_pb2_grpc.ProducerServiceAsyncStub = producer_pb2_grpc.ProducerServiceStub(channel)  # type: ignore[assignment]
        await submit(stub, requests(kind, range(-warm_up, 0), batch), in_flight)
        calls = requests(kind, range(tasks), batch)
        await gate.opened()
        started, cpu = time.monotonic(), time.process_time()
        ids = await submit(stub, calls, in_flight)
        ended = time.monotonic()
    return {
        "started": started,
        "ended": ended,
        "accepted": len(ids),
        "sample": ids[:: max(1, len(ids) // SAMPLE)][:SAMPLE],
        "cpu": time.process_time() - cpu,
    }


if __name__ == "__main__":
    run(load)
