"""Many watches at once, over several connections: when each event arrived, and whether each watch got all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc

from bench.gate import Gate, run
from headrace.v1 import event_pb2, status_pb2, status_pb2_grpc, task_pb2

# A pool of its own for each channel: otherwise all of them would share one connection.
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)
OPENING = 200
WATCH_SECONDS = 300.0


class Watches:
    """Opens one watch for each task and reads all of them."""

    def __init__(self, stubs: Sequence[status_pb2_grpc.StatusServiceAsyncStub], opening: int = OPENING) -> None:
        self._stubs = stubs
        self._opening = asyncio.Semaphore(opening)
        self.open = 0
        self.delays: list[float] = []
        """Seconds from the time that an event carries to its arrival here."""
        self.times: list[float] = []
        """When they happened, in seconds since 1970."""
        self.wrong: list[str] = []

    async def watch(self, number: int, task_id: str) -> None:
        """Watch one task to its end."""
        request = status_pb2.WatchTaskRequest(id=task_id)
        await self._opening.acquire()
        call = self._stubs[number % len(self._stubs)].WatchTask(request, timeout=WATCH_SECONDS)
        sequence = 0
        ended = False
        async for response in call:
            event = response.event
            if event.HasField("heartbeat"):
                continue
            if event.HasField("snapshot"):
                self._opening.release()
                self.open += 1
                ended = event.snapshot.state == task_pb2.TASK_STATE_COMPLETED
            else:
                self._arrived(event, sequence)
                ended = event.HasField("state_change") and event.state_change.terminal
            sequence = event.sequence
        if not ended:
            self.wrong.append(f"the watch of {task_id} ended at sequence {sequence} without the task's end")

    def _arrived(self, event: event_pb2.TaskEvent, before: int) -> None:
        self.times.append(event.time.ToNanoseconds() / 1e9)
        self.delays.append(time.time() - self.times[-1])
        if event.sequence != before + 1:
            self.wrong.append(f"the watch of {event.task_id} got {event.sequence} after {before}")


async def load(gate: Gate, *, status: str, ids: Sequence[str], connections: int) -> dict[str, Any]:
    """Open the watches, say so when every one has its snapshot, and read until the last has ended."""
    async with AsyncExitStack() as channels:
        stubs: list[Any] = [
            status_pb2_grpc.StatusServiceStub(
                await channels.enter_async_context(grpc.aio.insecure_channel(status, OPTIONS))
            )
            for _ in range(connections)
        ]
        watches = Watches(stubs)
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, one in enumerate(ids):
                group.create_task(watches.watch(number, one))
            while watches.open < len(ids):  # noqa: ASYNC110 - a count of 10,000, looked at now and then
                await asyncio.sleep(0.05)
            opened = time.monotonic()
            await gate.opened()
    return {
        "opened_in": opened - started,
        "span": max(watches.times) - min(watches.times),
        "delays": watches.delays,
        "wrong": watches.wrong,
    }


if __name__ == "__main__":
    run(load)
