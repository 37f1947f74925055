"""How long single reads take: one after the other, over raw stubs."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from bench.gate import Gate, run
from headrace.v1 import queue_pb2, queue_pb2_grpc, status_pb2, status_pb2_grpc, task_pb2

CALL_SECONDS = 30.0
WARM_UP = 3
READ_SECONDS = 20.0

Call = Callable[[int], Awaitable[object]]


async def load(gate: Gate, *, producer: str, status: str, ids: Sequence[str], times: int) -> dict[str, Any]:
    """Make each read `times` times; what `_timed` says, by read."""
    async with grpc.aio.insecure_channel(producer) as queues, grpc.aio.insecure_channel(status) as tasks:
        reads = _reads(queue_pb2_grpc.QueueServiceStub(queues), status_pb2_grpc.StatusServiceStub(tasks), ids)
        await gate.opened()
        return {name: await _timed(call, times) for name, call in reads.items()}


def _reads(queues: Any, tasks: Any, ids: Sequence[str]) -> dict[str, Call]:
    everything = status_pb2.TaskFilter(namespace="default")
    waiting = status_pb2.TaskFilter(namespace="default", states=[task_pb2.TASK_STATE_PENDING])
    within = {"timeout": CALL_SECONDS}
    return {
        "get_queue": lambda _: queues.GetQueue(queue_pb2.GetQueueRequest(name="default"), **within),
        "get_task": lambda n: tasks.GetTask(status_pb2.GetTaskRequest(id=ids[n % len(ids)]), **within),
        "list_tasks": lambda _: tasks.ListTasks(status_pb2.ListTasksRequest(filter=everything), **within),
        "list_waiting": lambda _: tasks.ListTasks(status_pb2.ListTasksRequest(filter=waiting), **within),
        "system_status": lambda _: tasks.GetSystemStatus(status_pb2.GetSystemStatusRequest(), **within),
    }


async def _timed(call: Call, times: int) -> dict[str, Any]:
    """Seconds of each call, however it ended, and how many failed; fewer calls where they take long."""
    seconds: list[float] = []
    failed = 0
    began = time.perf_counter()
    for number in range(WARM_UP + times):
        started = time.perf_counter()
        try:
            await call(number)
        except grpc.aio.AioRpcError:
            failed += 1
        seconds.append(time.perf_counter() - started)
        if time.perf_counter() - began > READ_SECONDS and len(seconds) > WARM_UP:
            break
    return {"seconds": seconds[WARM_UP:], "failed": failed}


if __name__ == "__main__":
    run(load)
