"""Looking at tasks: one, a page, many at once, and the events after a sequence. Nothing here changes anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.errors import TaskNotFound
from headrace_core.tasks.model import TaskRecord, TaskState, UnitType
from headrace_core.tasks.records import task_record

_SQL = queries.load("headrace_core.tasks", "sql/reading.sql")

NEWEST = UUID(int=2**128 - 1)
"""Beyond every task: the first page begins before it."""
OLDEST = UUID(int=0)
MAX_ATTEMPTS_SHOWN = 1_000
MAX_SHARDS_SHOWN = 10_000

# Ids carry the clock of the producer that made them, created_at that of Postgres. A window in time is exact by
# created_at; the bounds on the ids only keep it cheap, and a day is more than two clocks can differ.
_CLOCKS_APART = timedelta(days=1)
# A look at the last seconds is repeated all the time: there the bound on the ids must be tight.
_RECENT_CLOCKS_APART = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks; what is empty or None matches all. Times are aware UTC; `created_after` is inclusive."""

    namespace: str = ""
    kind: str = ""
    queue: str = ""
    states: tuple[TaskState, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    within: tuple[str, ...] | None = None
    """The namespaces that whoever asks may look into; None: all."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a task stands, and whose it is."""

    sequence: int
    state: TaskState
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One start of a unit; `ended_at` is None while it runs. `error` is raw JSON text."""

    unit_type: UnitType
    shard_index: int | None
    generation: int
    attempt: int
    epoch: int
    worker: str
    started_at: datetime | None
    ended_at: datetime | None
    outcome: str
    error: bytes | None


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One shard's row. `error` is raw JSON text."""

    index: int
    state: TaskState
    reason: str
    attempt: int
    failures: int
    crashes: int
    interruptions: int
    max_attempts: int
    max_crashes: int
    worker: str
    started_at: datetime | None
    ended_at: datetime | None
    error: bytes | None


@dataclass(frozen=True, slots=True)
class FullTask:
    """Everything about a task. `payload` and `result` are raw JSON; attempts oldest first, shards in plan order."""

    record: TaskRecord
    payload: bytes
    result: bytes | None
    attempts: list[AttemptRecord] = field(default_factory=list)
    shards: list[ShardRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A row of the table of events; which columns are set depends on `type`. `error` is raw JSON text."""

    task_id: UUID
    sequence: int
    generation: int
    unit: int
    plan: bool
    attempt: int
    at: datetime
    type: str
    state: str | None
    reason: str
    error: bytes | None
    due_at: datetime | None
    terminal: bool
    fraction: float | None
    text: str | None
    byte_offset: int | None
    done: int | None
    total: int | None


async def get_full_task(db: Database, task_id: UUID) -> FullTask:
    """Everything about one task, as one moment saw it.

    Raises:
        TaskNotFound: there is none.
        DatabaseUnavailable: Postgres does not answer.
    """

    async def work(tx: Transaction) -> FullTask:
        await tx.execute("set transaction isolation level repeatable read, read only")
        rows = await tx.fetch(_SQL["records"], {"ids": [task_id]})
        if not rows:
            raise not_found(task_id)
        body = (await tx.fetch(_SQL["bodies"], {"id": task_id}))[0]
        attempts = await tx.fetch(_SQL["attempts"], {"id": task_id, "limit": MAX_ATTEMPTS_SHOWN})
        shards = await tx.fetch(_SQL["shards"], {"id": task_id, "limit": MAX_SHARDS_SHOWN})
        return FullTask(
            task_record(rows[0]),
            body["payload"],
            body["result"],
            [AttemptRecord(**row) for row in reversed(attempts)],
            [ShardRecord(**row | {"state": TaskState(row["state"])}) for row in shards],
        )

    return await db.run(work)


def not_found(task_id: UUID) -> TaskNotFound:
    """The error that names the task."""
    return TaskNotFound(f"there is no task {task_id}", metadata={"id": str(task_id)})


async def read_tasks(db: Database, task_ids: Sequence[UUID]) -> dict[UUID, TaskRecord]:
    """The basic view of each task that exists, by id. Raises DatabaseUnavailable."""
    rows = await db.fetch(_SQL["records"], {"ids": list(task_ids)})
    return {row["id"]: task_record(row) for row in rows}


async def read_positions(db: Database, task_ids: Sequence[UUID]) -> dict[UUID, Position]:
    """Where each task that exists stands, by id. Raises DatabaseUnavailable."""
    return _positions(await db.fetch(_SQL["positions"], {"ids": list(task_ids)}))


async def list_tasks(db: Database, wanted: TaskFilter, *, limit: int, before: UUID = NEWEST) -> list[TaskRecord]:
    """Up to `limit` tasks older than the task `before`, newest first. Raises DatabaseUnavailable."""
    params = _filter_params(wanted) | {
        "before": min(before, _id_bound(wanted.created_before, _CLOCKS_APART, NEWEST)),
        "floor": _id_bound(wanted.created_after, -_CLOCKS_APART, OLDEST),
        "limit": limit,
    }
    statement = _SQL["list_tasks_by_labels" if wanted.labels else "list_tasks"]

    async def work(tx: Transaction) -> list[Row]:
        await tx.fetch(_SQL["force_custom_plan"])
        return await tx.fetch(statement, params)

    return [task_record(row) for row in await db.run(work)]


async def matching_of(db: Database, wanted: TaskFilter, task_ids: Sequence[UUID]) -> dict[UUID, Position]:
    """Which of `task_ids` match `wanted` (its states aside), and where they stand. Raises DatabaseUnavailable."""
    params = _filter_params(wanted) | {"ids": list(task_ids)}
    return _positions(await db.fetch(_SQL["matching_of"], params))


async def recent_matching(db: Database, wanted: TaskFilter, seconds: float, *, limit: int) -> dict[UUID, Position]:
    """Tasks that match `wanted` (its states aside) and were created in the last `seconds`, up to `limit`, the newest.

    Producers' clocks may be 15 s behind ours. Raises DatabaseUnavailable.
    """
    since = datetime.now(UTC) - timedelta(seconds=seconds)
    params = _filter_params(wanted) | {
        "seconds": float(seconds),
        "floor": _id_bound(since, -_RECENT_CLOCKS_APART, OLDEST),
        "limit": limit,
    }

    async def work(tx: Transaction) -> list[Row]:
        await tx.fetch(_SQL["force_custom_plan"])
        return await tx.fetch(_SQL["recent_matching"], params)

    return _positions(await db.run(work))


async def ended_matching(db: Database, wanted: TaskFilter, since: datetime, *, limit: int) -> dict[UUID, Position]:
    """Tasks that match `wanted` (its states aside) and ended at `since` or later, up to `limit`, the newest.

    Raises DatabaseUnavailable.
    """
    params = _filter_params(wanted) | {"since": since, "limit": limit}

    async def work(tx: Transaction) -> list[Row]:
        await tx.fetch(_SQL["force_custom_plan"])
        return await tx.fetch(_SQL["ended_matching"], params)

    return _positions(await db.run(work))


async def read_events(
    db: Database, cursors: Sequence[tuple[UUID, int]], *, per_task: int, limit: int
) -> list[EventRecord]:
    """Events after each (task, sequence): grouped by task in the order asked, oldest first.

    At most `per_task` of one task and `limit` in all; the tasks at the end go without when `limit` is reached. What a
    statement sees of a task is everything up to the sequence in the task's row at that moment, less what retention has
    removed: the row is locked while an event is written.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
    """
    params = {
        "ids": [task_id for task_id, _ in cursors],
        "afters": [after for _, after in cursors],
        "per_task": per_task,
        "limit": limit,
    }
    return [EventRecord(**row) for row in await db.fetch(_SQL["events"], params)]


async def has_schema(db: Database, *, timeout: float) -> bool:
    """Whether the database has been migrated. Raises DatabaseUnavailable after `timeout` seconds without an answer."""
    (row,) = await db.fetch(_SQL["has_schema"], timeout=timeout)
    return bool(row["found"])


def _id_bound(moment: datetime | None, margin: timedelta, otherwise: UUID) -> UUID:
    """The least UUIDv7 of the moment, moved by the margin; `otherwise` without a moment."""
    if moment is None:
        return otherwise
    milliseconds = int((moment.timestamp() + margin.total_seconds()) * 1000)
    return UUID(int=min(max(milliseconds, 0), 2**48 - 1) << 80)


def _filter_params(wanted: TaskFilter) -> dict[str, Any]:
    return {
        "namespace": wanted.namespace or None,
        "within": None if wanted.within is None else list(wanted.within),
        "kind": wanted.kind or None,
        "queue": wanted.queue or None,
        "states": [str(state) for state in wanted.states] or None,
        "labels": json.dumps(dict(wanted.labels)),
        "created_after": wanted.created_after,
        "created_before": wanted.created_before,
    }


def _positions(rows: list[Row]) -> dict[UUID, Position]:
    return {row["task_id"]: Position(row["sequence"], TaskState(row["state"]), row["namespace"]) for row in rows}
