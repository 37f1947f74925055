"""Telling watchers and consumers at once what Postgres will tell them anyway: wake-ups and cancellations.

Hints only. Without a broker, or with a full buffer, they are dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from uuid import UUID

from headrace_core.bus.connection import Bus
from headrace_core.bus.control import publish_cancel
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.wakes import WakePublisher
from headrace_core.tasks.model import Wake
from headrace_core.telemetry import metrics

MAX_QUEUED = 20_000


class Announcer:
    """Sends hints in the background, in their order. `announce_forever` is a background task's work."""

    def __init__(self, bus: Bus | None, names: StreamNames) -> None:
        self._bus = bus
        self._names = names
        self._wakes: deque[Wake] = deque()
        self._cancelled: deque[UUID] = deque()
        self._arrived = asyncio.Event()

    def wake(self, wakes: Sequence[Wake]) -> None:
        """These tasks have new events."""
        if self._bus is None or not self._bus.connected or len(self._wakes) + len(wakes) > MAX_QUEUED:
            metrics.wakes_dropped_total.inc(len(wakes))
            return
        self._wakes.extend(wakes)
        self._arrived.set()

    def cancelled(self, wakes: Sequence[Wake]) -> None:
        """These tasks have been ended from outside: their handlers are to stop."""
        if len(self._cancelled) + len(wakes) <= MAX_QUEUED:
            self._cancelled.extend(wake.task_id for wake in wakes)
        self.wake(wakes)

    async def announce_forever(self) -> None:
        """Send what was handed in."""
        if self._bus is None:
            return
        publisher = WakePublisher(self._bus, self._names)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            cancelled, wakes = list(self._cancelled), list(self._wakes)
            self._cancelled.clear()
            self._wakes.clear()
            if cancelled:
                await publish_cancel(self._bus, self._names, cancelled)
            dropped = publisher.dropped
            await publisher.publish(wakes)
            metrics.wakes_dropped_total.inc(publisher.dropped - dropped)
            metrics.wakes_published_total.inc(len(wakes) - (publisher.dropped - dropped))
