"""From commits to the stream: a bounded queue of intended publications, and notes of what the stream has stored.

Nothing here is needed for a promise: what is dropped, refused or lost stays unpublished in Postgres, where the sweep
finds it, and consumers, when the broker is down.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import BusError
from headrace_core.bus.publisher import OutgoingMessage, Publisher, PublishOutcome, PublishResult
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.model import Publication
from headrace_core.tasks.publication import mark_published
from headrace_core.telemetry import logs, metrics, tracing
from headrace_core.telemetry.publications import note_publications
from producer.stream_identity import StreamIdentity

MAX_QUEUED = 20_000
MAX_UNMARKED = 50_000
BATCH = 1000
FULL_SECONDS = 1.0
MARK_SECONDS = 0.5
# Most tasks are claimed within this time, and what was claimed needs no mark: a mark costs what a claim costs. Shorter
# than the sweep's grace period, or it would publish again what is only not marked yet.
UNMARKED_SECONDS = 3.0
# Beyond so many the oldest are marked sooner; they are kept in memory.
MOST_UNMARKED = 30_000

_log = logs.get("headrace.producer.publishing")


class _Stored(NamedTuple):
    """A publication that was confirmed, and the incarnation of the stream that was known when it was sent."""

    publication: Publication
    sequence: int
    incarnation: int
    at: float
    """By the loop's clock."""


class _Queued(NamedTuple):
    """A publication that waits for its turn, and since when, by the loop's clock."""

    publication: Publication
    since: float


class TaskPublisher:
    """Publishes units' ids. `publish_forever` and `mark_forever` are the work of two background tasks.

    `bus` is None with `broker = "none"`: then every offer is forgotten, and consumers take the work from Postgres.
    """

    def __init__(self, db: Database, bus: Bus | None, names: StreamNames) -> None:
        self._db = db
        self._bus = bus
        self._names = names
        self._publisher = Publisher(bus) if bus is not None else None
        self._queued: deque[_Queued] = deque()
        self.identity = StreamIdentity(db, bus, names.tasks) if bus is not None else None
        """Of the stream of tasks; None with `broker = "none"`."""
        self._unmarked: deque[_Stored] = deque(maxlen=MAX_UNMARKED)
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._full_until: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        """True if publishing makes sense now: JetStream is there."""
        return self._bus is not None and self._bus.jetstream

    @property
    def room(self) -> int:
        """How many more publications the queue takes."""
        return MAX_QUEUED - len(self._queued)

    def offer(self, publications: Sequence[Publication]) -> None:
        """Publish these soon. What finds no room, or no broker, is left to the sweep."""
        if not self.ready:
            return
        now = asyncio.get_running_loop().time()
        self._queued.extend([_Queued(item, now) for item in publications[: max(self.room, 0)]])
        self._idle.clear()
        self._arrived.set()

    def full(self) -> list[str]:
        """The subjects (`<queue>.<level>`) that the stream refused less than a second ago."""
        now = asyncio.get_running_loop().time()
        self._full_until = {subject: until for subject, until in self._full_until.items() if until > now}
        return list(self._full_until)

    async def publish_forever(self) -> None:
        """Publish what is offered. The broker's failures are no failures here."""
        while self._publisher is not None:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queued:
                await self._publish(self._publisher, self._next_batch())
            self._idle.set()

    async def mark_forever(self) -> None:
        """Note in Postgres, now and then, what the stream has stored."""
        while self._publisher is not None:
            await asyncio.sleep(MARK_SECONDS)
            await self._mark(UNMARKED_SECONDS)

    async def flush(self, within: float) -> None:
        """Wait until what was offered has been published, at most `within` seconds; the rest is another replica's."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            _log.info("publications are left to the next relay", action="publish_unflushed", count=len(self._queued))

    async def close(self) -> None:
        """Publish nothing more; note what is known."""
        if self._publisher is not None:
            await self._mark(0.0)
            await self._publisher.close()

    def _next_batch(self) -> list[_Queued]:
        refused = set(self.full())
        taken = [self._queued.popleft() for _ in range(min(BATCH, len(self._queued)))]
        return [item for item in taken if item.publication.subject_suffix not in refused] if refused else taken

    async def _publish(self, publisher: Publisher, batch: list[_Queued]) -> None:
        messages = [self._message(item.publication) for item in batch]
        sent_to = await self._known_incarnation()
        began = time.time()
        results = await publisher.publish(messages)
        if tracing.spans is not None:
            note_publications(tracing.spans, [item.publication for item in batch], results, began)
        for item, result in zip(batch, results, strict=True):
            self._note(item.publication, result, sent_to)
        _count(batch, results)
        refused = [result for result in results if not result.accepted and result.outcome is not PublishOutcome.FULL]
        if refused:
            _log.warning(
                "publications failed; the sweep repeats them",
                action="publish_failed",
                count=len(refused),
                outcome=refused[0].outcome,
                reason=refused[0].reason,
            )

    def _next_unmarked(self, age: float) -> list[_Stored]:
        since = asyncio.get_running_loop().time() - age
        batch: list[_Stored] = []
        while self._unmarked and len(batch) < BATCH:
            if self._unmarked[0].at > since and len(self._unmarked) <= MOST_UNMARKED:
                break
            batch.append(self._unmarked.popleft())
        return batch

    def _message(self, item: Publication) -> OutgoingMessage:
        message_id, body = item.encoded()
        return OutgoingMessage(self._names.task_subject(item.subject_suffix), body, message_id)

    async def _known_incarnation(self) -> int | None:
        """Of the stream, from before a publication; None if nobody can say now: then nothing is marked."""
        if self.identity is None or self.identity.incarnation is not None:
            return None if self.identity is None else self.identity.incarnation
        try:
            return await self.identity.look()
        except (BusError, DatabaseUnavailable):
            return None  # `_mark` says it, once a round

    def _note(self, item: Publication, result: PublishResult, sent_to: int | None) -> None:
        if result.accepted:
            if sent_to is not None:
                now = asyncio.get_running_loop().time()
                self._unmarked.append(_Stored(item, result.sequence, sent_to, now))
        elif result.outcome is PublishOutcome.FULL:
            self._full_until[item.subject_suffix] = asyncio.get_running_loop().time() + FULL_SECONDS

    async def _mark(self, age: float) -> None:
        """Mark, in batches, what was stored `age` seconds ago, or is too much to keep.

        What was confirmed by a stream that is not the one before us may be lost: it is left unmarked. A batch that
        Postgres did not take costs its units another publication, no more.
        """
        assert self.identity is not None
        if not self._unmarked and self.identity.incarnation is not None:
            return
        try:
            incarnation = await self.identity.look()
            while batch := self._next_unmarked(age):
                same = [(item.publication, item.sequence) for item in batch if item.incarnation == incarnation]
                await mark_published(self._db, incarnation, same)
        except (BusError, DatabaseUnavailable) as error:
            _log.info("publications not noted", action="mark_failed", count=len(self._unmarked), error=error.message)


def _count(batch: Sequence[_Queued], results: Sequence[PublishResult]) -> None:
    now = asyncio.get_running_loop().time()
    stored = [item for item, result in zip(batch, results, strict=True) if result.accepted]
    metrics.publish_batch_size.observe(len(batch))
    metrics.relay_lag_seconds.labels("queue").observe_many([now - item.since for item in stored])
    levels = Counter(item.publication.subject_suffix.rpartition(".")[2] for item in stored)
    for level, number in levels.items():
        metrics.published_total.labels(level).inc(number)
