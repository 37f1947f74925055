"""Dead letters on their way out of a consumer: to the DLQ stream, and those of messages that were no tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace_core.bus.connection import Bus
from headrace_core.bus.dead_letters import publish_dead_letters
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.entries import entry_of
from headrace_core.bus.errors import BusError
from headrace_core.bus.publisher import Publisher
from headrace_core.bus.puller import Message
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.dead_letters import find_letters, record_unparseable
from headrace_core.tasks.message import dead_letter_id
from headrace_core.telemetry import logs, metrics

MAX_MALFORMED = 100

log = logs.get(__name__)


class DeadLetterFeed:
    """Publishes dead letters to their stream at once. The relay notes that they are there, or publishes them itself."""

    def __init__(self, database: Database, bus: Bus, publisher: Publisher, names: StreamNames) -> None:
        self._database = database
        self._bus = bus
        self._publisher = publisher
        self._names = names

    async def publish(self, ids: Sequence[str]) -> None:
        """Publish those that are open and not there yet. Does not raise for a broker or a database that is away."""
        try:
            found = await find_letters(self._database, ids, ())
            fresh = [letter for letter in found.values() if not letter.published_at and not letter.resolved_at]
            await publish_dead_letters(self._bus, self._publisher, self._names, [entry_of(letter) for letter in fresh])
        except (BusError, DatabaseUnavailable) as error:
            log.info("dead letters are left to the relay", action="dead_letters.left", error=error.message)


class MalformedMessages:
    """Messages that are no tasks: recorded as dead letters, then terminated, in this order (promise G5)."""

    def __init__(self, database: Database, bus: Bus, names: StreamNames, feed: DeadLetterFeed) -> None:
        self._database = database
        self._bus = bus
        self._names = names
        self._feed = feed
        self._waiting: asyncio.Queue[tuple[str, Message, str]] = asyncio.Queue(MAX_MALFORMED)

    def note(self, queue: str, message: Message, detail: str) -> None:
        """Take one; when too many wait it is left to its redelivery."""
        try:
            self._waiting.put_nowait((queue, message, detail))
        except asyncio.QueueFull:
            log.warning("too many malformed messages wait", action="malformed.left", queue=queue)

    async def run(self) -> None:
        """Record and terminate. A background task; what it cannot record now comes again with the redelivery."""
        while True:
            queue, message, detail = await self._waiting.get()
            try:
                letter_id = dead_letter_id(message.timestamp, message.stream_sequence)
                await record_unparseable(self._database, letter_id, queue, message.body, detail)
            except DatabaseUnavailable as error:
                log.warning("malformed message not recorded yet", action="malformed.retry", error=error.message)
                continue
            metrics.dead_letters_total.labels("UNPARSEABLE_MESSAGE").inc()
            log.warning("a message was no task", action="malformed.recorded", queue=queue, dead_letter=letter_id)
            await message.term("UNPARSEABLE_MESSAGE")
            await self._feed.publish([letter_id])
