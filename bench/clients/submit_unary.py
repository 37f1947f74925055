"""A client that submits one task a call: as fast as its callers get answers, or at a given rate whatever they get."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc

from bench.gate import Gate, run
from bench.payloads import payload
from headrace.v1 import producer_pb2, producer_pb2_grpc

CALL_SECONDS = 10.0
# Of an open loop: what is under way beyond this would only queue in the client.
MAX_UNDER_WAY = 5000

Call = Callable[[], Awaitable[None]]


class Calls:
    """Submits tasks of kind `kind`, over each address in turn, and notes how long each call took."""

    def __init__(self, stubs: Sequence[producer_pb2_grpc.ProducerServiceAsyncStub], kind: str) -> None:
        self._stubs = itertools.cycle(stubs)
        self._kind = kind
        self._numbers = itertools.count()
        self.seconds: list[float] = []

    async def one(self) -> None:
        """Submit one. Raises for anything but a new task."""
        request = producer_pb2.SubmitTaskRequest(
            kind=self._kind, payload_json=payload(next(self._numbers)), idempotency_key=str(uuid.uuid4())
        )
        started = time.perf_counter()
        response = await next(self._stubs).SubmitTask(request, timeout=CALL_SECONDS)
        self.seconds.append(time.perf_counter() - started)
        if not response.created:
            raise RuntimeError(f"task {response.task.id} was there before")


async def closed_loop(call: Call, callers: int, seconds: float) -> None:
    """`callers` at once, each with one call after the other, for `seconds`."""
    end = time.monotonic() + seconds

    async def one_after_the_other() -> None:
        while time.monotonic() < end:
            await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one_after_the_other())


async def open_loop(call: Call, rate: float, seconds: float) -> None:
    """`rate` calls a second, each at its own time, whatever became of those before."""
    started = time.monotonic()
    under_way: set[asyncio.Task[None]] = set()
    failed: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            failed.append(error)

    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        if len(under_way) >= MAX_UNDER_WAY:
            raise RuntimeError(f"{MAX_UNDER_WAY} calls are under way: the server does not keep up with {rate:.0f}/s")
        task = asyncio.ensure_future(call())
        under_way.add(task)
        task.add_done_callback(ended)
    if under_way:
        await asyncio.wait(under_way, timeout=2 * CALL_SECONDS)
    if failed:
        raise failed[0]


async def load(
    gate: Gate, *, addresses: Sequence[str], kind: str, callers: int, seconds: float, warm_up: float, rate: float = 0.0
) -> dict[str, Any]:
    """Call for `warm_up` seconds, then, at the word, for `seconds`. `rate` (a second): an open loop instead."""
    async with AsyncExitStack() as channels:
        stubs = [
            producer_pb2_grpc.ProducerServiceStub(
                await channels.enter_async_context(grpc.aio.insecure_channel(address))
            )
            for address in addresses
        ]
        calls = Calls(stubs, kind)  # type: ignore[arg-type]
        await closed_loop(calls.one, callers, warm_up)
        warmed = len(calls.seconds)
        await gate.opened()
        started = time.monotonic()
        await (open_loop(calls.one, rate, seconds) if rate else closed_loop(calls.one, callers, seconds))
        took = time.monotonic() - started
    seen = calls.seconds[warmed:]
    return {"warmed": warmed, "calls": len(seen), "took": took, "seconds": seen, "cpu": time.process_time()}


if __name__ == "__main__":
    run(load)
