"""The watching half of the status service on a real database, without the wire: what a stream yields."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from uuid import UUID

from headrace.v1.event_pb2 import TaskEvent
from headrace_core.bus.declaration import StreamNames
from headrace_core.db.pool import Database
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.stack.logins import as_service
from headrace_core.tasks.model import Complete, Holder, Report, Wake
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from status.discovery import Discovery
from status.feed import Feed
from status.filters import WatchStart
from status.hub import Hub
from status.limits import WatchLimits
from status.reads import SharedReads
from status.watch import Watches
from tests.factories import claimed

WITHIN = 10.0
# Wakes alone move such a watch: a test that passes with it does not live from the sweep.
NO_SWEEP = WatchLimits(sweep=3600.0, sweep_without_bus=3600.0)
SWEEP_ONLY = WatchLimits(sweep=0.1, sweep_without_bus=0.1)


_COUNT = count()


def new_id() -> UUID:
    """A UUIDv7 of now, greater than those before it."""
    head = (time.time_ns() // 1_000_000) << 80
    counted = (next(_COUNT) & 0xFFF) << 64
    return UUID(int=head | 0x7 << 76 | counted | 0x2 << 62 | secrets.randbits(60))


@dataclass
class Rig:
    """Everything between the database and a stream."""

    db: Database
    hub: Hub
    feed: Feed
    discovery: Discovery
    watches: Watches

    def open(self, task_id: UUID, after: int | None = None) -> Stream:
        """A stream of one task."""
        return Stream(self.watches.events(WatchStart((task_id,), after={} if after is None else {task_id: after})))

    def open_with(self, start: WatchStart) -> Stream:
        """A stream that begins anyhow."""
        return Stream(self.watches.events(start))

    def wake(self, wakes: Sequence[Wake]) -> None:
        """As if the bus had brought them."""
        self.feed.wake(wakes)


class Stream:
    """What a client has of a stream so far."""

    def __init__(self, events: AsyncIterator[TaskEvent]) -> None:
        self._events = events
        self.seen: list[TaskEvent] = []

    async def next(self, within: float = WITHIN) -> TaskEvent:
        """The next event."""
        async with asyncio.timeout(within):
            event = await anext(self._events)
        self.seen.append(event)
        return event

    async def rest(self, within: float = WITHIN) -> list[TaskEvent]:
        """Everything up to the end."""
        async with asyncio.timeout(within):
            async for event in self._events:
                self.seen.append(event)
        return self.seen

    async def close(self) -> None:
        """The client leaves."""
        await self._events.aclose()  # type: ignore[attr-defined]


@asynccontextmanager
async def rig(database_url: str, limits: WatchLimits = NO_SWEEP, **changes: float) -> AsyncIterator[Rig]:
    """A rig with its loops running."""
    limits = replace(limits, **changes)  # type: ignore[arg-type]
    db, own = Database(database_url), Database(as_service(database_url, "status"))
    await db.open()
    await own.open()
    hub, discovery, reads = Hub(own, limits), Discovery(own, limits), SharedReads(own)
    feed = Feed(None, StreamNames(), hub, discovery, limits)
    supervisor = Supervisor()
    for name, work in {"hub": hub.run, "discovery": discovery.run, "feed": feed.run}.items():
        supervisor.spawn(name, work)
    try:
        yield Rig(db, hub, feed, discovery, Watches(hub, reads, discovery))
    finally:
        await supervisor.stop()
        await reads.close()
        await own.close()
        await db.close()


async def run_task(db: Database, holder: Holder, task_id: UUID, outputs: int) -> list[Wake]:
    """Run a task to its end: PROCESSING, `outputs` events of output, COMPLETED. The wakes of all of it."""
    unit = await claimed(db, holder, task_id)
    wakes: list[Wake] = []
    for index in range(outputs):
        wakes += await report(db, [Report(unit.lease, "output", text="x", byte_offset=index)])
    return [*wakes, *(await settle(db, [Complete(unit.lease, b'{"ok": true}')])).wakes]


def sequences(events: Sequence[TaskEvent]) -> list[int]:
    """The numbers of the log's events among them: without snapshots, gaps and heartbeats."""
    return [event.sequence for event in events if event.WhichOneof("event") in LOGGED]


LOGGED = ("state_change", "progress", "output")
