"""Postgres against the stream of tasks: which waiting units may have lost their message, and their next publication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.tasks.model import Publication, UnitId
from headrace_core.tasks.settle import lock_tasks

_SQL = queries.load("headrace_core.tasks", "sql/reconciliation.sql")
_MERGES = queries.load("headrace_core.tasks", "sql/settle.sql")["create_merges"]
LEVEL_NUMBERS = {"resume": 0, "low": 1, "normal": 2, "high": 3}
"""A subject's level as the index of published units counts them."""


@dataclass(frozen=True, slots=True)
class Passed:
    """Up to which sequence the durable of a subject has delivered."""

    queue: str
    level: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A waiting unit whose message may be gone, and where it was noted."""

    unit_id: UnitId
    dispatch: int
    incarnation: int
    sequence: int
    queue: str
    level: str


async def read_doubtful(db: Database, incarnation: int, passed: Sequence[Passed], limit: int) -> list[Doubtful]:
    """At most 2 × `limit` of each subject, of earlier incarnations and of this one, the oldest message first."""
    params = {
        "incarnation": incarnation,
        "queues": [item.queue for item in passed],
        "levels": [LEVEL_NUMBERS[item.level] for item in passed],
        "passed": [item.sequence for item in passed],
        "limit": limit,
    }
    return [_doubtful(row) for row in await db.fetch(_SQL["doubtful"], params)]


async def find_published(db: Database, incarnation: int, queue: str, level: str, sequence: int) -> list[Doubtful]:
    """The waiting unit whose message is the one at `sequence`; empty if none waits for it."""
    params = {"incarnation": incarnation, "queue": queue, "level": LEVEL_NUMBERS[level], "sequence": sequence}
    return [_doubtful(row) for row in await db.fetch(_SQL["published_at"], params)]


async def publish_again(db: Database, lost: Sequence[Doubtful]) -> list[Publication]:
    """A new publication for each that still waits for the lost one: the caller publishes them, or the sweep does."""
    params = {
        "tasks": [item.unit_id.task_id for item in lost],
        "units": [item.unit_id.unit for item in lost],
        "dispatches": [item.dispatch for item in lost],
    }
    return [_publication(row) for row in await db.fetch(_SQL["publish_again"], params)]


async def create_missing_merges(db: Database, limit: int) -> list[Publication]:
    """Create the merges of tasks whose shards are done and that lack theirs."""

    async def work(tx: Transaction) -> list[Publication]:
        # Read again under the locks: until then the quorum may be reached by the very batch that creates the merge.
        seen = [row["task_id"] for row in await tx.fetch(_SQL["without_merge"], {"limit": limit})]
        if not seen:
            return []
        await lock_tasks(tx, seen)
        still = {row["task_id"] for row in await tx.fetch(_SQL["without_merge"], {"limit": limit})}
        rows = await tx.fetch(_MERGES, {"tasks": sorted(still & set(seen))})
        return [_publication(row) for row in rows]

    return await db.run(work)


def _doubtful(row: Row) -> Doubtful:
    return Doubtful(
        UnitId(row["task_id"], row["unit"]),
        row["dispatch"],
        row["published_in"],
        row["published_seq"],
        row["queue"],
        _LEVELS[row["level"]],
    )


def _publication(row: Row) -> Publication:
    return Publication(
        UnitId(row["task_id"], row["unit"]), row["queue"], row["priority"], row["resumed"], row["dispatch"]
    )


_LEVELS = {number: level for level, number in LEVEL_NUMBERS.items()}
