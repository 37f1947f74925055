"""Ends that come from outside the handler: cancelled by a client, or past the deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.errors import TaskNotFound, TaskTerminal
from headrace_core.tasks.audit import Action
from headrace_core.tasks.model import TaskRecord, TaskState, Wake
from headrace_core.tasks.records import read_records
from headrace_core.tasks.settle import TaskEnd, count_ends, end_tasks, lock_tasks

_SQL = queries.load("headrace_core.tasks", "sql/cancel.sql")


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The task after the call; `changed` is False if it had been cancelled before."""

    task: TaskRecord
    changed: bool
    wakes: list[Wake]


async def cancel(
    db: Database,
    task_id: UUID,
    reason: str = "CANCELLED_BY_CLIENT",
    *,
    check: Callable[[TaskRecord], None] | None = None,
    action: Action | None = None,
) -> Cancelled:
    """Cancel a task and every open unit of it. Idempotent. `check` may raise; then nothing has changed.

    Raises:
        TaskNotFound: no such task.
        TaskTerminal: it has ended otherwise.
    """

    async def work(tx: Transaction) -> tuple[Cancelled, list[Row]]:
        await lock_tasks(tx, [task_id])
        before = (await read_records(tx, [task_id])).get(task_id) if check or action else None
        if check is not None and before is not None:
            check(before)
        ended = await end_tasks(tx, [TaskEnd(task_id, reason)], TaskState.CANCELLED)
        task = (await read_records(tx, [task_id])).get(task_id)
        if task is None:
            raise TaskNotFound(f"there is no task {task_id}", metadata={"id": str(task_id)})
        if not ended and task.state is not TaskState.CANCELLED:
            raise TaskTerminal(
                f"task {task_id} has ended as {task.state}; it cannot be cancelled",
                metadata={"state": task.state},
            )
        if action is not None and before is not None:
            action.namespace = task.namespace
            await action.note(tx, {"state": task.state}, before={"state": before.state})
        return Cancelled(task, bool(ended), [Wake(row["task_id"], row["sequence"]) for row in ended]), ended

    cancelled, ended = await db.run(work)
    count_ends(ended)
    return cancelled


async def expire(db: Database, limit: int = 500) -> list[Wake]:
    """End up to `limit` tasks whose deadline has passed, as EXPIRED."""

    async def work(tx: Transaction) -> list[Row]:
        overdue = [
            TaskEnd(row["task_id"], "DEADLINE_EXCEEDED") for row in await tx.fetch(_SQL["overdue"], {"limit": limit})
        ]
        return await end_tasks(tx, overdue, TaskState.EXPIRED) if overdue else []

    ended = await db.run(work)
    count_ends(ended)
    return [Wake(row["task_id"], row["sequence"]) for row in ended]
