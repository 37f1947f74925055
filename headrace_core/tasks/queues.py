"""Queues as the database knows them: declared settings, pauses, figures, and the purge."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any
from uuid import UUID

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.errors import UnknownQueue
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.audit import OK, UNFINISHED, Action
from headrace_core.tasks.model import TaskState, Wake
from headrace_core.tasks.settle import TaskEnd, count_ends, end_tasks

_SQL = queries.load("headrace_core.tasks", "sql/queues.sql")
PURGE_BATCH = 500
RATE_SECONDS = 60
RATE_SAMPLE = 5_000
"""Tasks that a rate is taken from, at most: with more than that in a minute it is the rate of the newest."""


@dataclass(frozen=True, slots=True)
class QueueLoad:
    """What decides whether a queue takes another task. `waiting` counts tasks that nobody has started yet, up to the
    bound that was asked for."""

    settings: QueueSettings
    paused: bool
    waiting: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """A queue as people see it. Backlog and delayed count waiting units (shards too), in_flight tasks.

    `oldest_age` in seconds, 0 if nothing due is waiting; rates per second over the last minute, or over the time that
    the newest RATE_SAMPLE tasks of all queues took.
    """

    settings: QueueSettings
    paused_at: datetime | None
    backlog: int
    delayed: int
    in_flight: int
    dead_letters: int
    oldest_age: float
    submit_rate: float
    finish_rate: float


async def declare(db: Database, declared: Iterable[QueueSettings]) -> None:
    """Write down the settings of the declared queues. Idempotent; other queues and all pauses stay."""
    queues = list(declared)
    params = {
        "names": [queue.name for queue in queues],
        "settings": [queue.model_dump_json(exclude={"name"}) for queue in queues],
    }
    await db.execute(_SQL["declare"], params)


async def read_loads(db: Database, bound: int, known: Mapping[str, int] = MappingProxyType({})) -> dict[str, QueueLoad]:
    """Every declared queue's load by name; waiting tasks are counted up to `bound`, or taken from `known`."""
    rows = await db.fetch(_SQL["loads"], {"bound": bound, "uncounted": list(known)})
    return {row["name"]: _load(row, known.get(row["name"], 0)) for row in rows}


async def read_figures(db: Database, name: str | None = None) -> list[QueueFigures]:
    """The figures of one queue, or of all by name.

    Raises:
        UnknownQueue: `name` is not declared.
    """
    since = UUID(int=int((time.time() - RATE_SECONDS) * 1000) << 80)

    async def work(tx: Transaction) -> list[QueueFigures]:
        rows = await tx.fetch(_SQL["figures"], {"name": name})
        sampled = {"name": name, "since": since, "sample": RATE_SAMPLE}
        rates = {row["name"]: row for row in await tx.fetch(_SQL["rates"], sampled)}
        return [_figures(row, rates.get(row["name"])) for row in rows]

    found = await db.run(work)
    if name is not None and not found:
        raise unknown_queue(name)
    return found


async def pause(db: Database, name: str, action: Action | None = None) -> None:
    """Start nothing more of the queue. Idempotent. Raises UnknownQueue."""
    await _steer(db, "pause", name, action)


async def resume(db: Database, name: str, action: Action | None = None) -> None:
    """Go on. Idempotent. Raises UnknownQueue."""
    await _steer(db, "resume", name, action)


async def _steer(db: Database, statement: str, name: str, action: Action | None) -> None:
    async def work(tx: Transaction) -> None:
        before = await tx.fetch(_SQL["lock_pause"], {"name": name}) if action else []
        after = await tx.fetch(_SQL[statement], {"name": name})
        if not after:
            raise unknown_queue(name)
        if action is not None:
            await action.note(tx, _pause_json(after[0]), before=_pause_json(before[0]))

    await db.run(work)


def _pause_json(row: Row) -> dict[str, Any]:
    paused_at = row["paused_at"]
    return {"paused_at": paused_at.isoformat() if paused_at is not None else None}


async def purge(
    db: Database, name: str, before: datetime, *, last_look: bool = False, action: Action | None = None
) -> list[Wake]:
    """Cancel up to PURGE_BATCH waiting tasks of the queue that existed at `before`; reason PURGED.

    Call until it finds none, then once more with `last_look`, which waits for rows that others hold.
    """
    statement = "waiting_still" if last_look else "waiting"

    async def work(tx: Transaction) -> list[Row]:
        params: dict[str, Any] = {"queue": name, "before": before, "limit": PURGE_BATCH}
        waiting = [TaskEnd(row["task_id"], "PURGED") for row in await tx.fetch(_SQL[statement], params)]
        ended = await end_tasks(tx, waiting, TaskState.CANCELLED) if waiting else []
        if action is not None and (ended or last_look):
            outcome = OK if last_look and not ended else UNFINISHED
            await action.note(tx, {"purged": action.done + len(ended)}, outcome=outcome)
        return ended

    ended = await db.run(work)
    count_ends(ended)
    return [Wake(row["task_id"], row["sequence"]) for row in ended]


async def count_waiting(db: Database, namespaces: Iterable[str]) -> dict[str, int]:
    """Tasks of these namespaces that nobody has started yet. Reads every waiting task once."""
    names = list(namespaces)
    rows = await db.fetch(_SQL["waiting_of"], {"namespaces": names})
    return dict.fromkeys(names, 0) | {row["namespace"]: row["waiting"] for row in rows}


def _settings(row: Row) -> QueueSettings:
    return QueueSettings.model_validate({**json.loads(row["settings"]), "name": row["name"]})


def _load(row: Row, known: int) -> QueueLoad:
    waiting = known if row["waiting"] is None else row["waiting"]
    return QueueLoad(_settings(row), row["paused_at"] is not None, waiting, row["dead_letters"])


def _figures(row: Row, rates: Row | None) -> QueueFigures:
    return QueueFigures(
        settings=_settings(row),
        paused_at=row["paused_at"],
        backlog=row["backlog"],
        delayed=row["delayed"],
        in_flight=row["in_flight"],
        dead_letters=row["dead_letters"],
        oldest_age=max(row["oldest"] or 0.0, 0.0),
        submit_rate=rates["submit_rate"] if rates else 0.0,
        finish_rate=rates["finish_rate"] if rates else 0.0,
    )


def unknown_queue(name: str) -> UnknownQueue:
    """The error for a name that no queue has."""
    return UnknownQueue(f"no queue {name!r} is declared; declare it in headrace.toml", metadata={"queue": name})
