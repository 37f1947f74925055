"""How full the queues are, as this process last counted: at most a second old, plus what it has accepted since.

A counter row that each insert updates would cost three quarters of the rate (design, rule 15).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from headrace_core.db.pool import Database
from headrace_core.errors import BacklogFull, DeadLettersFull, UnknownQueue
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.queues import QueueLoad, read_loads

REFRESH_SECONDS = 0.75
FORCED_REFRESH_SECONDS = 0.25
RETRY_AFTER = 1.0
DEAD_LETTERS_RETRY_AFTER = 60.0
LEASE_SECONDS = QueueSettings(name="default").lease


class QueueLoads:
    """The cache. `keep_fresh` is a background task's work; the rest answers from memory unless the queue is new."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._loads: dict[str, QueueLoad] = {}
        self._accepted: Counter[str] = Counter()
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
        """Read again and again, for ever. Raises DatabaseUnavailable; what is known stays known."""
        while True:
            await self._refresh_unless_fresh(FORCED_REFRESH_SECONDS)
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
            bound = max((load.settings.max_backlog for load in self._loads.values()), default=1_000_000)
            self._loads = await read_loads(self._db, bound)
            self._read_at = clock()
            # What was accepted while the query ran may not have been counted: it stays on top.
            self._accepted.subtract(before)
            self._accepted = +self._accepted
