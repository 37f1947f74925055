"""One stream as the hub sees it: where it stands in each of its tasks, and which of them have something for it.

Nothing is copied into a watcher: its memory is bounded by the tasks that it watches, however slowly it takes.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

from headrace_core.errors import DomainError
from status.topic import Topic


class Track:
    """One task on one stream. `position`: the last sequence that the stream has. `live`: it has caught up once, so that
    falling behind from then on means that it is too slow."""

    __slots__ = ("live", "position", "topic", "watcher")

    def __init__(self, watcher: Watcher, topic: Topic, position: int) -> None:
        self.watcher = watcher
        self.topic = topic
        self.position = position
        self.live = False


class Watcher:
    """Who waits for events. Made by `Hub.watcher`; all methods belong to the event loop."""

    __slots__ = ("_arrived", "_event", "_failure", "_max_arrived", "_ready", "tracks")

    def __init__(self, max_arrived: int) -> None:
        self.tracks: dict[UUID, Track] = {}
        self._ready: dict[Track, None] = {}
        self._arrived: dict[UUID, None] = {}
        self._max_arrived = max_arrived
        self._failure: DomainError | None = None
        self._event = asyncio.Event()

    def mark(self, track: Track) -> None:
        """There is something to look at in this task."""
        self._ready[track] = None
        self._event.set()

    def arrive(self, task_id: UUID, limit_error: DomainError) -> None:
        """A task that the stream's filter matches and that it does not watch yet; beyond the bound the stream ends."""
        if len(self._arrived) >= self._max_arrived:
            self.fail(limit_error)
        else:
            self._arrived[task_id] = None
            self._event.set()

    def fail(self, error: DomainError) -> None:
        """End the stream with `error` at its next step; the first error stays."""
        self._failure = self._failure or error
        self._event.set()

    def check(self) -> None:
        """Raise the error that ends the stream, if there is one."""
        if self._failure is not None:
            # A new object for each stream that raises: exceptions collect the tracebacks of everybody who raises them.
            failure = self._failure
            raise type(failure)(failure.message, retry_after=failure.retry_after, metadata=failure.metadata)

    async def wait(self, seconds: float) -> bool:
        """Wait until there is something to do; False after `seconds` of nothing. Raises as `check`."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self.check()
        return True

    def take_ready(self) -> list[Track]:
        """The tasks with something to look at; they are no longer marked."""
        ready = [track for track in self._ready if track.topic.task_id in self.tracks]
        self._ready.clear()
        self._settle()
        return ready

    def take_arrived(self) -> list[UUID]:
        """The tasks that have arrived; they are no longer kept."""
        arrived = list(self._arrived)
        self._arrived.clear()
        self._settle()
        return arrived

    def _settle(self) -> None:
        if not self._ready and not self._arrived and self._failure is None:
            self._event.clear()
