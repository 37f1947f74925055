"""The intake of one queue: what is due is claimed in batches as slots are free, and started.

One loop for both sources. While the broker is trusted it claims what was delivered; otherwise it claims what is due in
Postgres as well. A broker that is trusted and delivers nothing is not believed to have nothing: what has been due for
a while is claimed all the same, whoever failed to publish or to deliver it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from consumer.intake.levels import Levels, Waiting
from consumer.intake.limits import Slots, TokenBucket, Turnover
from consumer.intake.mode import Mode
from headrace_core.bus.puller import Message
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.runtime.pace import Pace
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.claim import claim, claim_due
from headrace_core.tasks.model import Claim, ClaimedUnit, Holder, Verdict, Wake
from headrace_core.telemetry import logs, metrics

POLL_SECONDS = 0.2
BUSY_SECONDS = 0.05
GATHER_SECONDS = 0.002
STALE_SECONDS = 1.0
IDLE_SECONDS = 5.0
MAX_CLAIM = 500
MAX_UNSETTLED = 2000
DATABASE_PAUSE_SECONDS = 0.5
# How long units may be due, and deliveries stay out, before they are looked for in Postgres.
UNDELIVERED_SECONDS = 5.0
SILENT_SECONDS = 15.0

log = logs.get(__name__)


class Starter(Protocol):
    """What runs claimed units."""

    @property
    def unsettled(self) -> int:
        """How many attempts wait for their settlement to be committed."""

    def start(self, unit: ClaimedUnit, message: Message | None, slots: Slots) -> None:
        """Run a unit; it gives its slot back by itself."""


class QueueIntake:
    """Claims and starts the units of one queue. `run` is a background task, `stop` ends it between two claims."""

    def __init__(
        self,
        queue: QueueSettings,
        slot_count: int,
        database: Database,
        holder: Holder,
        starter: Starter,
        mode: Callable[[], Mode],
        on_wakes: Callable[[Sequence[Wake]], None],
    ) -> None:
        self.queue = queue
        self.slots = Slots(slot_count, self.wake)
        self.levels: Levels | None = None
        """None with `broker = "none"`."""
        self.turned_at = 0.0
        """When the loop last turned, by the loop's clock."""
        self._looked_at = 0.0
        self._database = database
        self._holder = holder
        self._starter = starter
        self._mode = mode
        self._on_wakes = on_wakes
        self._turnover = Turnover(slot_count)
        self._pace = Pace()
        self._bucket = TokenBucket(queue.rate_limit, _now())
        self._wake = asyncio.Event()
        self._stopping = False
        self._ended = asyncio.Event()
        self._ended.set()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def problem(self) -> str:
        """Why this queue is not served, empty if it is. Readiness hangs on it."""
        if _now() - self.turned_at > SILENT_SECONDS:
            return f"the intake of queue {self.queue.name} does not turn"
        if self._mode() != "broker" or self.levels is None or self.levels.silence <= SILENT_SECONDS:
            return ""
        return (
            f"queue {self.queue.name}: the broker has sent neither messages nor heartbeats for "
            f"{self.levels.silence:.0f} s; pull requests are repeated"
        )

    async def run(self) -> None:
        """Claim and start until stopped. A background task."""
        self._ended.clear()
        try:
            if self.levels is not None:
                await self.levels.start()
            while not self._stopping:
                self._wake.clear()
                pause = await self._turn()
                self.turned_at = _now()
                await self._wait(pause)
        finally:
            self._ended.set()

    async def stop(self, within: float) -> None:
        """Claim nothing more: what was being claimed is started, the rest goes back. Idempotent."""
        self._stopping = True
        self._wake.set()
        try:
            async with asyncio.timeout(within):
                await self._ended.wait()
        except TimeoutError:
            log.warning("a claim has not ended", action="intake.stuck", queue=self.queue.name)
        if self.levels is not None:
            await self.levels.stop()

    async def _turn(self) -> float:
        """One round; how many seconds to wait for the next unless woken."""
        room = await self._worthwhile_room()
        if self.levels is not None and not self._stopping:
            await self.levels.top_up(room + self._prefetch())
        try:
            if room and self.levels is not None and len(self.levels.buffer):
                refused = await self._claim_delivered(self.levels, room)
                # What was refused leaves its slots free and brings nothing that would wake us: ask for more at once.
                return 0.0 if refused else self._pause()
            if room and self._mode() != "broker":
                claimed = await self._claim_due(room)
                return 0.0 if claimed == room else POLL_SECONDS
            if room and self._nothing_comes():
                await self._claim_undelivered(room)
                return self._pause()
        except DatabaseUnavailable as error:
            # The messages stay here: a nak would use up one of their three deliveries.
            log.warning("nothing claimed", action="claim.unavailable", queue=self.queue.name, error=error.message)
            await asyncio.sleep(DATABASE_PAUSE_SECONDS * (1 + secrets.randbelow(1000) / 1000))
            return 0.0
        if self.slots.free == 0 and self.levels is not None and len(self.levels.buffer):
            await self.levels.give_back_stale()
        return self._pause()

    def _nothing_comes(self) -> bool:
        last = self._looked_at if self.levels is None else max(self._looked_at, self.levels.received_at)
        return _now() - last >= UNDELIVERED_SECONDS

    async def _claim_undelivered(self, room: int) -> None:
        """Look for what nobody delivers: the rights, the relays, the stream may be at fault, the tasks are not."""
        claimed = await self._claim_due(room, UNDELIVERED_SECONDS)
        if claimed:
            log.warning("due work was not delivered", action="intake.undelivered", queue=self.queue.name, units=claimed)
            self.wake()
        if claimed < room:
            self._looked_at = _now()

    async def _worthwhile_room(self) -> int:
        """As `_room`, after a moment if only a few slots are free and many messages wait.

        Slots of short tasks come back one by one; claiming each on its own would cost a transaction for each.
        """
        room = self._room()
        waiting = 0 if self.levels is None else len(self.levels.buffer)
        if 0 < room < min(waiting, self.slots.limit // 4):
            await asyncio.sleep(GATHER_SECONDS)
            room = self._room()
        return room

    def _prefetch(self) -> int:
        return 0 if self.queue.rate_limit else self._turnover.prefetch(_now(), self.slots.released)

    def _room(self) -> int:
        """How many units may start now."""
        if self._stopping or self._starter.unsettled > MAX_UNSETTLED:
            return 0
        tokens = self._bucket.available(_now())
        limit = min(self.slots.free, MAX_CLAIM)
        return limit if math.isinf(tokens) else min(limit, int(tokens))

    def _pause(self) -> float:
        if self._mode() != "broker":
            return POLL_SECONDS
        if self.slots.free == 0:
            return STALE_SECONDS
        if self._room() == 0:  # the rate, or too many settlements on their way: neither wakes us
            return max(self._bucket.until_next(), BUSY_SECONDS)
        return 0.0 if self.levels is not None and len(self.levels.buffer) else IDLE_SECONDS

    async def _wait(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _claim_delivered(self, levels: Levels, room: int) -> int:
        """Claim what waits here; how many of them started nothing."""
        if len(levels.buffer) < room:
            await self._pace.gather()
        taken = levels.buffer.take(room)
        self._pace.took(len(taken))
        self.slots.take(len(taken))
        try:
            claims, wakes = await claim(self._database, [item.delivered for _, item in taken], self._holder)
        except BaseException:
            for level, item in reversed(taken):
                levels.buffer.put_back(level, item)
            self._give_slots_back(len(taken))
            raise
        self._on_wakes(wakes)
        for (_, item), answer in zip(taken, claims, strict=True):
            if answer.unit is not None:
                self._starter.start(answer.unit, item.message, self.slots)
        started = sum(answer.unit is not None for answer in claims)
        self._count("broker", started)
        await self._refuse([(item, answer) for (_, item), answer in zip(taken, claims, strict=True)])
        return len(taken) - started

    async def _refuse(self, answers: Sequence[tuple[Waiting, Claim]]) -> None:
        """Acknowledge what is nothing to start: the row knows what comes next (rule 5)."""
        refused = [(item, answer) for item, answer in answers if answer.verdict is not Verdict.CLAIMED]
        self._give_slots_back(len(refused))
        for item, answer in refused:
            metrics.claim_refused_total.labels(answer.verdict.value).inc()
            await item.message.ack()

    async def _claim_due(self, room: int, overdue: float = 0.0) -> int:
        self.slots.take(room)
        try:
            units, wakes = await claim_due(self._database, self.queue.name, room, self._holder, overdue)
        except BaseException:
            self._give_slots_back(room)
            raise
        self._give_slots_back(room - len(units))
        self._on_wakes(wakes)
        self._count("postgres", len(units))
        for unit in units:
            self._starter.start(unit, None, self.slots)
        return len(units)

    def _count(self, source: str, claimed: int) -> None:
        if claimed:
            self._bucket.take(claimed)
            metrics.claims_total.labels(source, self.queue.name).inc(claimed)
            metrics.claim_batch_size.observe(claimed)

    def _give_slots_back(self, count: int) -> None:
        """Without waking ourselves: nothing has become free that was not free before."""
        self.slots.free += count


def _now() -> float:
    return asyncio.get_running_loop().time()
