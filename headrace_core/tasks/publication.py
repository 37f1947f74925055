"""The outbox: what is committed, due, and not known to be in the stream."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from headrace_core.db import arrays, queries
from headrace_core.db.pool import Database
from headrace_core.tasks.model import Publication, TaskRecord, UnitId
from headrace_core.telemetry import metrics

_SQL = queries.load("headrace_core.tasks", "sql/publication.sql")


def of_submitted(task: TaskRecord, trace_context: str | None = None) -> Publication:
    """The first publication of a task that was just accepted."""
    return Publication(UnitId(task.id), task.queue, task.priority, False, 1, trace_context)


async def take_unpublished(db: Database, limit: int, grace: float, full: Collection[str] = ()) -> list[Publication]:
    """Take up to `limit` due units whose last try to publish is older than `grace` seconds (or never was).

    `full` names subjects (`<queue>.<level>`) that the stream refuses for now.
    """
    rows = await db.fetch(_SQL["take_unpublished"], {"limit": limit, "grace": grace, "full": list(full)})
    metrics.relay_lag_seconds.labels("sweep").observe_many([row["waited"] for row in rows])
    return [
        Publication(
            UnitId(row["task_id"], row["unit"]),
            row["queue"],
            row["priority"],
            row["resumed"],
            row["dispatch"],
            row["trace_context"],
        )
        for row in rows
    ]


async def mark_published(db: Database, incarnation: int, stored: Sequence[tuple[Publication, int]]) -> None:
    """Note that the stream, in this incarnation, has them at these sequences.

    Losing this note costs one more publication; the claim makes it harmless.
    """
    params = {
        "incarnation": incarnation,
        "tasks": arrays.uuids([item.unit_id.task_id for item, _ in stored]),
        "units": arrays.ints([item.unit_id.unit for item, _ in stored]),
        "dispatches": arrays.ints([item.dispatch for item, _ in stored]),
        "sequences": [sequence for _, sequence in stored],
    }
    await db.execute(_SQL["mark_published"], params)
