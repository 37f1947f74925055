"""Keeps the DLQ stream in step with the open dead letters in Postgres, both ways (promise G5), in every replica.

Postgres decides. What is open and not in the stream is published, what is in the stream and not open is removed; that
covers the ordinary course (a failure, a redrive, a discard), a stream that was made anew, and entries that somebody
deleted or added by hand.
"""

from __future__ import annotations

import asyncio
from itertools import islice

from headrace_core.bus.connection import Bus
from headrace_core.bus.dead_letters import Entry, list_dead_letters, publish_dead_letters, remove_dead_letter
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.entries import entry_of
from headrace_core.bus.errors import BusError, StreamMissing
from headrace_core.bus.publisher import Publisher
from headrace_core.bus.topology import stream_info
from headrace_core.db.pool import Database
from headrace_core.tasks import dead_letters
from headrace_core.telemetry import logs, metrics
from producer.stream_identity import StreamIdentity

COUNT_SECONDS = 5.0
# So often both sides are held against each other although their counts agree: one may be missing and one too many.
COMPARE_SECONDS = 20.0
# Beyond so many entries they are compared only where the counts differ: a comparison reads all of them.
COMPARED_ANYWAY = 10_000
PAGE = 5000
BATCH = 500

_log = logs.get("headrace.producer.dead_letters")


class DeadLetterSync:
    """`sync` is a chore of the relay, every second; `close` ends it."""

    def __init__(self, db: Database, bus: Bus, names: StreamNames) -> None:
        self._db = db
        self._bus = bus
        self._names = names
        self._identity = StreamIdentity(db, bus, names.dead_letters)
        self._entries = Publisher(bus)
        self._counted_at = float("-inf")
        self._compared_at = float("-inf")
        self._differed = False

    async def sync(self) -> None:
        """One round. Raises DatabaseUnavailable; what the broker refuses waits for the next round."""
        if not self._bus.jetstream:
            return
        try:
            incarnation = await self._identity.look()
            while await dead_letters.unmark_lost(self._db, incarnation):
                _log.warning("the stream of dead letters is another one: published again", action="dead_letters_lost")
            while await self._publish_open(incarnation):
                continue
            while await self._remove_closed():
                continue
            await self._agree()
        except StreamMissing:
            return  # said by the consumers and by the system status, each with what to do
        except BusError as error:
            _log.warning("dead letters wait for the broker", action="dead_letters_wait", error=error.message)

    async def close(self) -> None:
        """Listen for no more answers."""
        await self._entries.close()

    async def _publish_open(self, incarnation: int) -> bool:
        """Publish a batch; True if there is more that will be taken."""
        letters = await dead_letters.take_unpublished(self._db, BATCH)
        if not letters:
            return False
        entries = [entry_of(letter) for letter in letters]
        results = await publish_dead_letters(self._bus, self._entries, self._names, entries)
        stored = [letter.id for letter, result in zip(letters, results, strict=True) if result.accepted]
        # Only if the stream is still the one that was seen before: what another one confirmed may be gone.
        if await self._identity.look() != incarnation:
            return False
        await dead_letters.mark_published(self._db, incarnation, stored)
        if refused := [result for result in results if not result.accepted]:
            _log.warning(
                "dead letters not published",
                action="dead_letters_refused",
                count=len(refused),
                reason=refused[0].reason,
            )
        return len(stored) == BATCH

    async def _remove_closed(self) -> bool:
        """Remove a batch; True if there is more."""
        closed = await dead_letters.take_unremoved(self._db, BATCH)
        for letter_id, queue in closed:
            await remove_dead_letter(self._bus, self._names, queue, letter_id)
        if closed:
            await dead_letters.mark_removed(self._db, [letter_id for letter_id, _ in closed])
        return len(closed) == BATCH

    async def _agree(self) -> None:
        """Compare when the counts have differed twice, or when it is time to anyway."""
        now = asyncio.get_running_loop().time()
        if now - self._counted_at < COUNT_SECONDS:
            return
        self._counted_at = now
        wanted = await dead_letters.count_published(self._db)
        found = (await stream_info(self._bus, self._names.dead_letters))["state"]["messages"]
        before, self._differed = self._differed, wanted != found
        due = now - self._compared_at >= COMPARE_SECONDS and max(wanted, found) <= COMPARED_ANYWAY
        if due or (before and self._differed):
            self._compared_at = now
            await self.compare()

    async def compare(self) -> None:
        """Hold every entry against its dead letter. Raises BusError, DatabaseUnavailable.

        Postgres is read before the stream for what is missing, and after it for what is too much: so whatever comes
        or goes meanwhile is neither.
        """
        expected = await self._published()
        found: set[int] = set()
        async for page in list_dead_letters(self._bus, self._names):
            found.update(hash(entry.id) for entry in page)
            await self._remove_surplus(page)
        missing = [letter_id for letter_id in expected if hash(letter_id) not in found]
        for start in range(0, len(missing), PAGE):
            count = await dead_letters.unmark_published(self._db, missing[start : start + PAGE])
            _repaired("published", count)

    async def _published(self) -> list[str]:
        expected: list[str] = []
        while page := await dead_letters.list_published(self._db, expected[-1] if expected else "", PAGE):
            expected += page
        return expected

    async def _remove_surplus(self, entries: list[Entry]) -> None:
        remaining = iter(entries)
        while page := list(islice(remaining, PAGE)):
            still_open = await dead_letters.find_open(self._db, [entry.id for entry in page])
            surplus = [entry for entry in page if entry.id not in still_open]
            for entry in surplus:
                await remove_dead_letter(self._bus, self._names, entry.queue, entry.id)
            _repaired("removed", len(surplus))


def _repaired(how: str, count: int) -> None:
    if count:
        metrics.dead_letters_repaired_total.labels(how).inc(count)
        _log.warning("the stream of dead letters differed", action="dead_letters_repaired", how=how, count=count)
