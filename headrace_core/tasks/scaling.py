"""What the queues ask of consumers: the figures that decide how many there are. See docs/scaling.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace_core.db import queries
from headrace_core.db.pool import Database

_SQL = queries.load("headrace_core.tasks", "sql/scaling.sql")

SATURATED = 20_000
"""Due units that are counted in one queue, at most: no number of consumers is decided by more. They take 4 ms, and
17 ms in a table that has just been filled, before its first vacuum."""
WORK_SECONDS = 4.0
ACTIVE_SECONDS = 2.0
"""What Postgres has for an answer. Whoever scales asks again soon, and must hear in time that there is none."""


@dataclass(frozen=True, slots=True)
class QueueWork:
    """What one queue asks of consumers.

    `waiting` counts due units, up to SATURATED; `held` units under a lease; `oldest_age` is that of the oldest due one
    in seconds, 0 if none waits; `processing`: some task is PROCESSING, also one that is between its shards.
    """

    name: str
    paused: bool = False
    waiting: int = 0
    held: int = 0
    oldest_age: float = 0.0
    processing: bool = False

    @property
    def work(self) -> int:
        """Units that take a place in a consumer or would take one now. A paused queue starts none."""
        return self.held + (0 if self.paused else self.waiting)

    @property
    def wait(self) -> float:
        """How long the oldest unit has waited for a consumer, in seconds. In a paused queue it waits for the resume."""
        return 0.0 if self.paused else self.oldest_age

    @property
    def active(self) -> bool:
        """Whether there must be a consumer at all."""
        return self.work > 0 or self.processing


async def read_work(db: Database) -> dict[str, QueueWork]:
    """Every declared queue's by name. Raises DatabaseUnavailable."""
    rows = await db.fetch(_SQL["work"], {"bound": SATURATED}, timeout=WORK_SECONDS)
    # The second half of the statement: units held, by queue. Of a queue that nobody has declared, too.
    held = {row["name"]: row["held"] for row in rows if row["paused"] is None}
    return {
        row["name"]: QueueWork(
            name=row["name"],
            paused=row["paused"],
            waiting=row["waiting"],
            held=held.get(row["name"], 0),
            oldest_age=max(row["oldest"] or 0.0, 0.0),
            processing=row["processing"],
        )
        for row in rows
        if row["paused"] is not None
    }


async def read_active(db: Database) -> Mapping[str, bool]:
    """Which declared queues need a consumer at all, by name. Raises DatabaseUnavailable."""
    rows = await db.fetch(_SQL["active"], timeout=ACTIVE_SECONDS)
    return {row["name"]: row["active"] for row in rows}
