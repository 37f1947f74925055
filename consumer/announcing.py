"""What follows a commit: new messages, live hints, dead letters.

None of it is waited for by the units, and none of it is needed for correctness: the relay publishes whatever is not
marked as published. So the buffers are bounded and may overflow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.wakes import WakePublisher
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.model import Publication, Settlements, Wake
from headrace_core.tasks.publication import mark_published
from headrace_core.telemetry import logs, metrics

MAX_WAITING = 20_000
BATCH = 1000

T = TypeVar("T")

log = logs.get(__name__)


class DeadLetterFeed(Protocol):
    """Publishes fresh dead letters to their stream."""

    async def publish(self, ids: Sequence[str]) -> None:
        """Publish those that are not there yet. Does not raise for a broker that is away."""


class Announcer:
    """Publishes, in the background and in batches, what committed transactions left to say."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        wakes: WakePublisher,
        names: StreamNames,
        dead_letters: DeadLetterFeed,
        connected: Callable[[], bool],
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._wake_publisher = wakes
        self._names = names
        self._dead_letter_feed = dead_letters
        self._connected = connected
        self._publications: deque[Publication] = deque(maxlen=MAX_WAITING)
        self._wakes: deque[Wake] = deque(maxlen=MAX_WAITING)
        self._letters: deque[str] = deque(maxlen=MAX_WAITING)
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def settled(self, settlements: Settlements) -> None:
        """Announce what a settled batch left."""
        self._publications.extend(settlements.publications)
        self._letters.extend(answer.dead_letter_id for answer in settlements.answers if answer.dead_letter_id)
        self.wakes(settlements.wakes)

    def wakes(self, wakes: Sequence[Wake]) -> None:
        """Announce that tasks have new events."""
        self._wakes.extend(wakes)
        self._arrived.set()
        self._idle.clear()

    async def flush(self, within: float) -> bool:
        """Wait until everything is announced, at most `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Announce what arrives. A background task; without a broker it drops, and the relay makes up for it."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._wakes or self._publications or self._letters:
                await self._announce()
            self._idle.set()

    async def _announce(self) -> None:
        wakes, publications, letters = _drain(self._wakes), _drain(self._publications), _drain(self._letters)
        if not self._connected():
            metrics.wakes_dropped_total.inc(len(wakes))
            return
        if wakes:
            await self._wake_publisher.publish(list({wake.task_id: wake for wake in wakes}.values()))
            metrics.wakes_published_total.inc(len(wakes))
        if publications:
            await self._publish(publications)
        if letters:
            await self._dead_letter_feed.publish(letters)

    async def _publish(self, publications: list[Publication]) -> None:
        results = await self._publisher.publish([self._message(item) for item in publications])
        stored = [item for item, result in zip(publications, results, strict=True) if result.accepted]
        for item in stored:
            metrics.published_total.labels(item.subject_suffix.rpartition(".")[2]).inc()
        if not stored:
            return
        try:
            await mark_published(self._database, stored)
        except DatabaseUnavailable as error:
            log.info("publications not noted; the relay repeats them", action="announce.unmarked", error=error.message)

    def _message(self, item: Publication) -> OutgoingMessage:
        return OutgoingMessage(self._names.task_subject(item.subject_suffix), item.body, item.message_id)


def _drain(waiting: deque[T]) -> list[T]:
    return [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
