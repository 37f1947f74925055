"""How full the queues are, as this process last counted: at most a second old, plus what it has accepted since.

A counter row that each insert updates would cost three quarters of the rate (design, rule 15). Counting 300,000 waiting
tasks takes 0.2 s, so a queue that cannot be full yet, whoever fills it, is not counted again until it could be.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping

from headrace_core.db.pool import Database
from headrace_core.errors import BacklogFull, DatabaseUnavailable, DeadLettersFull, UnknownQueue
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.queues import QueueLoad, read_loads
from headrace_core.telemetry import logs

REFRESH_SECONDS = 0.75
FORCED_REFRESH_SECONDS = 0.25
# Tasks a second that all replicas together might accept: more than any Postgres takes.
FASTEST_FILL = 100_000
LONGEST_UNCOUNTED_SECONDS = 15.0
RETRY_AFTER = 1.0
DEAD_LETTERS_RETRY_AFTER = 60.0
LEASE_SECONDS = QueueSettings(name="default").lease

_log = logs.get("headrace.producer.queue_loads")


class QueueLoads:
    """The cache. `keep_fresh` is a background task's work; the rest answers from memory unless the queue is new."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._loads: dict[str, QueueLoad] = {}
        self._accepted: Counter[str] = Counter()
        self._count_at: dict[str, float] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def admit(self, queue: str) -> QueueSettings:
        """The settings of a queue that takes another task.

        Raises:
            UnknownQueue: nobody declared it.
            BacklogFull, DeadLettersFull: it holds as many as it may.
            DatabaseUnavailable: it is not known here, and Postgres does not answer.
        """
        load = self._loads.get(queue) or await self._look_again(queue)
        limits = load.settings
        if load.waiting + self._accepted[queue] >= limits.max_backlog:
            raise BacklogFull(
                f"queue {queue!r} holds {limits.max_backlog} waiting tasks, its max_backlog; try again later",
                retry_after=RETRY_AFTER,
                metadata={"queue": queue, "limit": str(limits.max_backlog)},
            )
        if load.dead_letters >= limits.max_dead_letters:
            raise DeadLettersFull(
                f"queue {queue!r} holds {limits.max_dead_letters} open dead letters, its max_dead_letters;"
                " redrive or discard some",
                retry_after=DEAD_LETTERS_RETRY_AFTER,
                metadata={"queue": queue, "limit": str(limits.max_dead_letters)},
            )
        return limits

    def note_accepted(self, queues: Iterable[str]) -> None:
        """Count what was accepted since the last reading."""
        self._accepted.update(queues)

    def is_paused(self, queue: str) -> bool:
        """True if the queue was paused when it was last read."""
        load = self._loads.get(queue)
        return load is not None and load.paused

    def lease(self, queue: str) -> float:
        """Seconds that a lease of the queue holds without a renewal; the default's for a queue that is not known."""
        load = self._loads.get(queue)
        return load.settings.lease if load is not None else LEASE_SECONDS

    def age(self) -> float:
        """Seconds since they were last read; infinite before."""
        return asyncio.get_running_loop().time() - self._read_at

    async def refresh(self) -> None:
        """Read now. Raises DatabaseUnavailable."""
        await self._refresh_unless_fresh(0.0)

    async def keep_fresh(self) -> None:
        """Read again and again, for ever. While Postgres is away, what is known stays known."""
        while True:
            try:
                await self._refresh_unless_fresh(FORCED_REFRESH_SECONDS)
            except DatabaseUnavailable as error:
                _log.warning("queue figures were not read", action="queue_loads_unread", error=error.message)
            await asyncio.sleep(REFRESH_SECONDS)

    async def _look_again(self, queue: str) -> QueueLoad:
        await self._refresh_unless_fresh(FORCED_REFRESH_SECONDS)
        load = self._loads.get(queue)
        if load is None:
            raise UnknownQueue(
                f"no queue {queue!r} is declared; declare it in headrace.toml", metadata={"queue": queue}
            )
        return load

    async def _refresh_unless_fresh(self, age: float) -> None:
        clock = asyncio.get_running_loop().time
        async with self._reading:
            if clock() - self._read_at < age:
                return
            before = self._accepted.copy()
            known = self._not_full_before(clock() + REFRESH_SECONDS)
            bound = max((load.settings.max_backlog for load in self._loads.values()), default=1_000_000)
            self._loads = await read_loads(self._db, bound, known)
            self._read_at = clock()
            # What was accepted while the query ran may not have been counted: it stays on top.
            self._accepted.subtract({name: number for name, number in before.items() if name not in known})
            self._accepted = +self._accepted
            self._count_at = {name: self._next_count(load, known) for name, load in self._loads.items()}

    def _next_count(self, load: QueueLoad, known: Mapping[str, int]) -> float:
        """When the queue could be full at the earliest. Its limit may have changed since it was counted."""
        name, room = load.settings.name, load.settings.max_backlog - load.waiting
        earliest = self._read_at + min(room / FASTEST_FILL, LONGEST_UNCOUNTED_SECONDS)
        return min(earliest, self._count_at[name]) if name in known else earliest

    def _not_full_before(self, moment: float) -> dict[str, int]:
        """The queues that need not be counted before `moment`, with what was counted last."""
        return {name: load.waiting for name, load in self._loads.items() if self._count_at.get(name, 0.0) > moment}
