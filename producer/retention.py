"""Removes what is kept no longer, in every replica, steadily and with a small share of one connection.

A batch takes some hundredths of a second at most and is followed by a pause in proportion. So a backlog of millions, as
after the ages were shortened, is worked off in the background and not in a rush.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.settings.environment import ServiceSettings
from headrace_core.tasks import retention
from headrace_core.tasks.retention import MAX_TASKS, Removed, TablesLocked
from headrace_core.telemetry import logs, metrics

ROUND_SECONDS = 30.0

_log = logs.get("headrace.producer.retention")


class Retention:
    """`run` is a background task's work. An age of 0 days means for ever; events never outlive their task."""

    def __init__(self, db: Database, *, days: float, events_days: float, share: float, audit_days: float = 0) -> None:
        self._db = db
        self._age = timedelta(days=days)
        self._events_age = timedelta(days=events_days)
        self._audit_age = timedelta(days=audit_days)
        self._rest = 1.0 / share - 1.0
        self._limit = MAX_TASKS
        self._after: datetime | None = None

    @classmethod
    def of(cls, db: Database, settings: ServiceSettings) -> Retention:
        """As the settings say."""
        return cls(
            db,
            days=settings.retention_days,
            events_days=settings.retention_events_days,
            share=settings.retention_share,
            audit_days=settings.retention_audit_days,
        )

    async def run(self) -> None:
        """Remove what is due, look again after a while, for ever."""
        while True:
            try:
                await self.remove_due()
            except DatabaseUnavailable as error:
                # It may have been too much for one statement: the next try is smaller.
                self._limit = max(self._limit // 4, 1)
                _log.warning("retention waits for Postgres", action="retention_waits", error=error.message)
            except TablesLocked as error:
                _log.warning("retention waits for a lock", action="retention_waits", error=str(error))
            await asyncio.sleep(ROUND_SECONDS)

    async def remove_due(self) -> None:
        """One round: until nothing is left that is kept no longer. Raises DatabaseUnavailable, TablesLocked."""
        if self._age:
            self._after = None
            await self._repeat("tasks", self._age, self._remove_tasks)
            await self._remove_letters()
        if self._events_age and not (self._age and self._events_age >= self._age):
            await self._repeat("events", self._events_age, self._remove_events)
        if self._audit_age:
            await self._repeat("audit", self._audit_age, self._remove_audit)

    async def _repeat(self, what: str, age: timedelta, batch: Callable[[], Awaitable[Removed]]) -> None:
        while True:
            removed = await self._paced(batch)
            metrics.retention_removed_total.labels("tasks").inc(removed.tasks if what == "tasks" else 0)
            metrics.retention_removed_total.labels("events").inc(removed.events)
            metrics.retention_overdue_seconds.labels(what).set(_overdue(removed, age))
            self._limit = min(self._limit * 2, MAX_TASKS)
            if not removed.more:
                return

    async def _paced(self, batch: Callable[[], Awaitable[Removed]]) -> Removed:
        """The pause comes last, so that a round that found little is as good as free."""
        clock = asyncio.get_running_loop().time
        started = clock()
        removed = await batch()
        if removed.more:
            await asyncio.sleep((clock() - started) * self._rest)
        return removed

    async def _remove_tasks(self) -> Removed:
        removed = await retention.remove_tasks(self._db, self._age, limit=self._limit, after=self._after)
        self._after = removed.ended_at
        return removed

    async def _remove_events(self) -> Removed:
        return await retention.remove_events(self._db, self._events_age, limit=self._limit)

    async def _remove_audit(self) -> Removed:
        count = await retention.remove_audit(self._db, self._audit_age)
        metrics.retention_removed_total.labels("audit").inc(count)
        return Removed(more=count >= MAX_TASKS)

    async def _remove_letters(self) -> None:
        """A batch in a round: they are few."""
        count = await retention.remove_letters(self._db, self._age)
        metrics.retention_removed_total.labels("dead_letters").inc(count)


def _overdue(removed: Removed, age: timedelta) -> float:
    """How much longer than `age` the oldest that is left has been kept, in seconds; 0 if nothing is due."""
    if not removed.more or removed.ended_at is None:
        return 0.0
    return max((datetime.now(UTC) - removed.ended_at - age).total_seconds(), 0.0)
