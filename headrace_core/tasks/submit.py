"""Accepting tasks: many in one commit, each idempotent by its key (promises G1, G2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from headrace_core.db import arrays, queries
from headrace_core.db.pool import Database, Row
from headrace_core.tasks.model import NewTask, Submitted, TaskRecord, TaskState
from headrace_core.tasks.records import task_record

_SQL = queries.load("headrace_core.tasks", "sql/submit.sql")


async def submit(db: Database, tasks: Sequence[NewTask], *, timeout: float = 5.0) -> list[Submitted]:
    """Commit `tasks` in one transaction; one answer each, in order. Safe to repeat with the same ids.

    Raises:
        DatabaseUnavailable: the outcome is unknown; repeat with the same ids to learn it.
        DataRejected: one of them is bad; none was accepted.
    """

    rows = await db.fetch(_SQL["insert_tasks"], _columns(tasks), timeout=timeout)
    inserted = {row["task_id"]: row for row in rows}
    answers = {
        task.id: Submitted(_accepted(task, inserted[task.id]), created=True, trace_context=task.trace_context)
        for task in tasks
        if task.id in inserted
    }
    met = [task for task in tasks if task.id not in inserted]
    known = await _read_back(db, met, timeout)
    answers |= {task.id: _known(task, known[task.id]) for task in met if task.id in known}
    if gone := [task for task in met if task.id not in known]:
        # What stood in their way has been removed since, by retention: their keys are free.
        answers |= dict(zip([task.id for task in gone], await submit(db, gone, timeout=timeout), strict=True))
    return [answers[task.id] for task in tasks]


async def find_by_key(db: Database, namespace: str, key: str) -> tuple[TaskRecord, bytes] | None:
    """The task that holds this idempotency key, and its request's fingerprint; None if the key is free."""
    rows = await db.fetch(_SQL["find_by_key"], {"namespace": namespace, "key": key})
    return (task_record(rows[0]), bytes(rows[0]["fingerprint"])) if rows else None


async def _read_back(db: Database, tasks: list[NewTask], timeout: float) -> dict[Any, Row]:
    if not tasks:
        return {}
    params = {
        "ids": [task.id for task in tasks],
        "namespaces": [task.namespace for task in tasks],
        "keys": [task.idempotency_key for task in tasks],
    }
    return {row["asked_id"]: row for row in await db.fetch(_SQL["read_back"], params, timeout=timeout)}


def _known(task: NewTask, row: Row) -> Submitted:
    """A task met under the key: the same request, perhaps even the same id, from a repeated commit."""
    return Submitted(
        task_record(row), created=row["id"] == task.id, reused=bytes(row["fingerprint"]) != task.fingerprint
    )


def _columns(tasks: Sequence[NewTask]) -> dict[str, Any]:
    """The parameters of insert_tasks: what differs from task to task by task, what does not once, as a shape."""
    shapes: dict[tuple[Any, ...], int] = {}
    numbers = [shapes.setdefault(_shape(task), len(shapes) + 1) for task in tasks]
    namespaces, kinds, queues, priorities, max_attempts, max_crashes = zip(*shapes, strict=True)
    return {
        "ids": arrays.uuids([task.id for task in tasks]),
        "payloads": arrays.texts([task.payload for task in tasks]),
        "fingerprints": arrays.byteas([task.fingerprint for task in tasks]),
        "shapes": arrays.ints(numbers),
        "keys": _texts_or_none([task.idempotency_key for task in tasks]),
        "labels": arrays.texts(
            [json.dumps(dict(task.labels)).encode() for task in tasks] if any(task.labels for task in tasks) else []
        ),
        "run_ats": _moments([task.run_at for task in tasks]),
        "deadlines": _moments([task.deadline for task in tasks]),
        "traces": _texts_or_none([task.trace_context for task in tasks]),
        "namespaces": list(namespaces),
        "kinds": list(kinds),
        "queues": list(queues),
        "priorities": list(priorities),
        "max_attempts": list(max_attempts),
        "max_crashes": list(max_crashes),
    }


def _shape(task: NewTask) -> tuple[Any, ...]:
    return task.namespace, task.kind, task.queue, int(task.priority), task.max_attempts, task.max_crashes


def _texts_or_none(values: Sequence[str | None]) -> arrays.Texts:
    """Empty, so that the statement fills it up with nulls, where no task has any."""
    return arrays.texts([None if value is None else value.encode() for value in values] if any(values) else [])


def _moments(moments: list[datetime | None]) -> list[datetime | None]:
    return moments if any(moments) else []


def _accepted(task: NewTask, row: Row) -> TaskRecord:
    """The record of a task that was just inserted: nothing of it needs to be read again."""
    created_at: datetime = row["created_at"]
    return TaskRecord(
        id=task.id,
        namespace=task.namespace,
        kind=task.kind,
        queue=task.queue,
        priority=int(task.priority),
        state=TaskState.PENDING,
        reason="",
        generation=1,
        sequence=1,
        labels=task.labels,
        idempotency_key=task.idempotency_key,
        attempt=0,
        failures=0,
        crashes=0,
        interruptions=0,
        max_attempts=task.max_attempts,
        max_crashes=task.max_crashes,
        fraction=0.0,
        message="",
        done_shards=0,
        total_shards=None,
        created_at=created_at,
        due_at=row["due_at"],
        deadline=task.deadline,
        started_at=None,
        ended_at=None,
        updated_at=created_at,
        worker="",
        error=None,
    )
