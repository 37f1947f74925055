"""Removing what is kept no longer: ended tasks with all their rows, and, earlier, the events of ended tasks.

FAILED is never removed (design, rule 16): a redrive or a discard ends it. Each call is one short transaction that locks
ended tasks only and skips what others hold, so that any number of processes may call at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import TypeVar
from uuid import UUID

from psycopg.errors import LockNotAvailable

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction

_SQL = queries.load("headrace_core.tasks", "sql/retention.sql")

MAX_TASKS = 500
MAX_ROWS = 20_000
"""Rows of a table that one transaction removes, a single task's units aside."""
LOCK_TIMEOUT = timedelta(milliseconds=100)

T = TypeVar("T")


class TablesLocked(Exception):
    """Somebody holds a lock that a removal would have had to wait for. Nothing was removed; try again later."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What one call removed. `tasks` counts the tasks that are gone; for `remove_events`, those without events now."""

    tasks: int = 0
    events: int = 0
    more: bool = False
    """There may be more to remove."""
    ended_at: datetime | None = None
    """When the last task looked at had ended: where the next call goes on; None if there was nothing to remove."""


async def remove_tasks(
    db: Database, age: timedelta, *, limit: int = MAX_TASKS, rows: int = MAX_ROWS, after: datetime | None = None
) -> Removed:
    """Remove up to `limit` tasks that ended more than `age` ago, oldest first, with everything that belongs to them.

    Only what ended at `after` or later is looked at: with `ended_at` of the previous call nothing is read twice. A task
    with more than `rows` events or attempts takes several calls, its events first.

    Raises:
        TablesLocked: nothing was removed.
        DatabaseUnavailable: the outcome is unknown; a repeated call does what is left.
    """

    async def work(tx: Transaction) -> Removed:
        params = {"after": after, "age": age.total_seconds(), "limit": limit}
        found = await tx.fetch(_SQL["lock_ended"], params)
        if not found:
            return Removed()
        chosen = _bounded(found, rows)
        return await _remove(tx, chosen, rows, more=len(chosen) < len(found) or len(found) == limit)

    return await _run(db, work)


async def remove_events(db: Database, age: timedelta, *, limit: int = MAX_TASKS, rows: int = MAX_ROWS) -> Removed:
    """Remove the events of about `limit` tasks that ended more than `age` ago, oldest first; at most `rows` events.

    One process at a time: a call that does not get the turn finds nothing. Raises as `remove_tasks`.
    """

    async def work(tx: Transaction) -> Removed:
        turn = await tx.fetch(_SQL["take_turn"])
        if not turn:
            return Removed()
        params = {"until": turn[0]["events_until"], "age": age.total_seconds(), "limit": limit}
        found = await tx.fetch(_SQL["ended_after"], params)
        if not found:
            return Removed()
        until = found[-1]["ended_at"]
        events = await tx.execute(_SQL["remove_events"], {"tasks": _ids(found), "limit": rows})
        if events == rows:
            return Removed(events=events, more=True, ended_at=found[0]["ended_at"])
        await tx.execute(_SQL["note_events_until"], {"until": until})
        return Removed(len(found), events, more=len(found) >= limit, ended_at=until)

    return await _run(db, work)


async def remove_letters(db: Database, age: timedelta, *, limit: int = MAX_TASKS) -> int:
    """Remove up to `limit` dead letters without a task that were closed more than `age` ago; how many went.

    Raises as `remove_tasks`.
    """
    params = {"age": age.total_seconds(), "limit": limit}
    return await _run(db, lambda tx: tx.execute(_SQL["remove_letters"], params))


async def remove_audit(db: Database, age: timedelta, *, limit: int = MAX_TASKS) -> int:
    """Remove up to `limit` records of what operators did over `age` ago; how many went. Raises as `remove_tasks`."""
    params = {"age": age.total_seconds(), "limit": limit}
    return await _run(db, lambda tx: tx.execute(_SQL["remove_audit"], params))


async def _remove(tx: Transaction, chosen: Sequence[Row], rows: int, *, more: bool) -> Removed:
    """In an order that leaves a task that is seen, if only a part of it fits into this transaction."""
    tasks, first, last = _ids(chosen), chosen[0]["ended_at"], chosen[-1]["ended_at"]
    events = await tx.execute(_SQL["remove_events"], {"tasks": tasks, "limit": rows})
    if events == rows:
        return Removed(events=events, more=True, ended_at=first)
    if await tx.execute(_SQL["remove_attempts"], {"tasks": tasks, "limit": rows}) == rows:
        return Removed(events=events, more=True, ended_at=first)
    await tx.execute(_SQL["remove_letters_of"], {"tasks": tasks})
    await tx.execute(_SQL["remove_units"], {"tasks": tasks})
    return Removed(len(chosen), events, more, last)


async def _run(db: Database, work: Callable[[Transaction], Awaitable[T]]) -> T:
    async def giving_way(tx: Transaction) -> T:
        await tx.fetch(_SQL["lock_timeout"], {"milliseconds": str(LOCK_TIMEOUT // timedelta(milliseconds=1))})
        return await work(tx)

    try:
        return await db.run(giving_way)
    except LockNotAvailable as error:
        raise TablesLocked(f"a table or a row was locked for {LOCK_TIMEOUT.total_seconds():g} s") from error


def _bounded(found: Sequence[Row], rows: int) -> Sequence[Row]:
    """The first tasks that have no more than `rows` units together, and at least one."""
    within = sum(total <= rows for total in accumulate(row["units"] for row in found))
    return found[: max(within, 1)]


def _ids(rows: Sequence[Row]) -> list[UUID]:
    return [row["task_id"] for row in rows]
