"""The figures of the queues for everybody who asks, at a bounded price.

Counting a million waiting tasks takes Postgres a seventh of a second, and dashboards ask every second. So figures are
as fresh as they are cheap: a reading serves for twenty times as long as it took. Where it took long, whoever comes
after that gets it once more, while the next one is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.queues import QueueFigures, unknown_queue
from headrace_core.telemetry import logs

SHARE = 20
"""A reading serves for so many times as long as it took."""
CHEAP_SECONDS = 0.01
"""What takes no longer is waited for; of anything else the last reading is served while the next is under way."""
OLDEST_SECONDS = 15.0

T = TypeVar("T")

_log = logs.get("headrace.figures")


class SharedReading(Generic[T]):
    """The last reading of something, renewed when it is asked for. `read` reads it, each time anew.

    `wait`: whoever finds it too old always waits for the next one, however long that takes: for those who decide by it.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], *, wait: bool = False) -> None:
        self._read = read
        self._cheap = float("inf") if wait else CHEAP_SECONDS
        self._found: T | None = None
        self._at = float("-inf")
        self._cost = 0.0
        self._reading: asyncio.Task[None] | None = None

    @property
    def last(self) -> T | None:
        """What was read last, however long ago; None: nothing yet."""
        return self._found

    async def latest(self, *, fresh: bool = False) -> T:
        """What was read last, or is read now. `fresh` reads now: after a change that the answer is to show.

        Raises:
            DatabaseUnavailable: Postgres does not answer, and what is known is too old.
        """
        age = _now() - self._at
        if fresh or age > OLDEST_SECONDS or (age > SHARE * self._cost and self._cost <= self._cheap):
            await self._renewed(again=fresh)
        elif age > SHARE * self._cost:
            self._renew()
        assert self._found is not None, "whatever was waited for has been read"
        return self._found

    async def close(self) -> None:
        """End the reading under way. Idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading}, timeout=1.0)

    async def _renewed(self, *, again: bool) -> None:
        """Wait for a reading; `again`: for one that begins now."""
        if again and self._reading is not None and not self._reading.done():
            await asyncio.wait({self._reading})
        await asyncio.shield(self._renew())

    def _renew(self) -> asyncio.Task[None]:
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._look(), name="queue figures")
            self._reading.add_done_callback(_note_failure)
        return self._reading

    async def _look(self) -> None:
        began = _now()
        self._found = await self._read()
        self._at = _now()
        self._cost = self._at - began


class Figures(SharedReading[list[QueueFigures]]):
    """The figures of all queues."""

    async def all(self, *, fresh: bool = False) -> list[QueueFigures]:
        """Every queue's, by name. As `latest`."""
        return await self.latest(fresh=fresh)

    async def of(self, name: str, *, fresh: bool = False) -> QueueFigures:
        """One queue's. Raises UnknownQueue, and as `all`."""
        for figures in await self.all(fresh=fresh):
            if figures.settings.name == name:
                return figures
        if not fresh:  # it may have been declared a moment ago
            return await self.of(name, fresh=True)
        raise unknown_queue(name)


def _note_failure(reading: asyncio.Task[None]) -> None:
    """Nobody may be waiting for it; whoever comes when the last reading is too old hears of it."""
    if not reading.cancelled() and isinstance(error := reading.exception(), DatabaseUnavailable):
        _log.info("queue figures were not read", action="figures_unread", error=error.message)


def _now() -> float:
    return asyncio.get_running_loop().time()
