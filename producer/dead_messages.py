"""Messages that the broker has given up: never delivered again, never gone by themselves.

The server says so in an advisory, captured in a stream of its own; the reconciler finds them without it as well. Either
is only a hint to look: the row of the unit decides, and a message that is no task becomes a dead letter (promise G5).
"""

from __future__ import annotations

import asyncio

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import ADVISORY_DURABLE, LEVELS, StreamNames
from headrace_core.bus.errors import BusError
from headrace_core.bus.puller import Message, Puller
from headrace_core.bus.task_stream import (
    Advisory,
    StoredMessage,
    delete_message,
    nanoseconds,
    parse_advisory,
    read_message,
)
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.dead_letters import record_unparseable
from headrace_core.tasks.message import Malformed, dead_letter_id, parse
from headrace_core.tasks.reconciliation import find_published, publish_again
from headrace_core.telemetry import logs, metrics
from producer.publishing import TaskPublisher
from producer.stream_identity import StreamIdentity

BATCH = 100
IDLE_SECONDS = 2.0

_log = logs.get("headrace.producer.dead_messages")


class DeadMessages:
    """Buries dead messages. `follow_advisories` is a background task; the reconciler calls `bury`."""

    def __init__(
        self, db: Database, bus: Bus, names: StreamNames, publisher: TaskPublisher, identity: StreamIdentity
    ) -> None:
        self._db = db
        self._bus = bus
        self._names = names
        self._publisher = publisher
        self._identity = identity
        self._advisories: asyncio.Queue[Message] = asyncio.Queue(2 * BATCH)
        self._puller: Puller | None = None

    async def bury(self, message: StoredMessage) -> None:
        """Remove a message that will never be delivered.

        Its unit, if it still waits for it, is published again by the reconciler: its sequence has been passed. Raises
        the errors of `Bus.request` and DatabaseUnavailable; to try again is safe.
        """
        try:
            parse(message.body)
        except Malformed as error:
            letter = dead_letter_id(message.at, message.sequence)
            queue = message.subject.split(".")[-2]
            await record_unparseable(self._db, letter, queue, message.body, str(error))
            metrics.dead_letters_total.labels("UNPARSEABLE_MESSAGE").inc()
        await delete_message(self._bus, self._names.tasks, message.sequence)
        metrics.dead_messages_removed_total.inc()
        _log.info("a dead message was removed", action="message_buried", subject=message.subject, seq=message.sequence)

    async def follow_advisories(self) -> None:
        """Look at what the server says it has given up. What cannot be looked at now comes again after ack_wait."""
        self._puller = Puller(self._bus, self._names.advisories, ADVISORY_DURABLE, self._take, on_idle=lambda: None)
        await self._puller.start()
        try:
            while True:
                await self._follow(self._puller)
        finally:
            await self._puller.stop()

    def _take(self, message: Message) -> None:
        if not self._advisories.full():  # else it comes again
            self._advisories.put_nowait(message)

    async def _follow(self, puller: Puller) -> None:
        if self._advisories.empty() and puller.outstanding == 0:
            await puller.request(BATCH)
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                message = await self._advisories.get()
        except TimeoutError:
            return
        try:
            await self._heed(message)
        except (BusError, DatabaseUnavailable) as error:
            _log.info("an advisory waits", action="advisory_waits", error=error.message)

    async def _heed(self, message: Message) -> None:
        try:
            advisory = parse_advisory(message.body)
        except ValueError:
            _log.warning("an advisory could not be read", action="advisory_unreadable", size=len(message.body))
        else:
            await self._look_at(advisory)
        await message.ack()

    async def _look_at(self, advisory: Advisory) -> None:
        incarnation = await self._identity.look()
        queue, _, level = advisory.durable.rpartition("-")
        if advisory.at < nanoseconds(self._identity.created) or level not in LEVELS:
            return  # of a stream that is no more: the same number is another message's now
        found = await read_message(self._bus, self._names.tasks, advisory.sequence)
        if found is not None and found.at > advisory.at:
            return
        lost = await find_published(self._db, incarnation, queue, level, advisory.sequence)
        if lost:
            self._publisher.offer(await publish_again(self._db, lost))
            metrics.republished_total.inc(len(lost))
        if found is not None:
            await self.bury(found)
