"""The reads that streams share: rows of tasks, where tasks stand, and pages of history, each many in one statement."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from headrace.v1.event_pb2 import TaskEvent
from headrace_core.db.pool import Database
from headrace_core.rpc.convert import event_message
from headrace_core.tasks.model import TaskRecord
from headrace_core.tasks.reading import Position, read_events, read_positions, read_tasks
from status.coalesce import Coalescer

PAGE_EVENTS = 100
"""Events in one page of history. A stream holds one page at a time, however slowly its client takes it."""
_PAGES = 50

Cursor = tuple[UUID, int]


class SharedReads:
    """One for the process. Everything raises DatabaseUnavailable where Postgres does not answer."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.tasks: Coalescer[UUID, TaskRecord] = Coalescer("tasks", self._tasks, max_keys=500)
        self.positions: Coalescer[UUID, Position] = Coalescer("positions", self._positions, max_keys=5_000)
        self.history: Coalescer[Cursor, list[TaskEvent]] = Coalescer("history", self._history, max_keys=_PAGES)

    async def close(self) -> None:
        """End what is under way."""
        for reads in (self.tasks, self.positions, self.history):
            await reads.close()

    async def _tasks(self, ids: list[UUID]) -> Mapping[UUID, TaskRecord]:
        return await read_tasks(self._db, ids)

    async def _positions(self, ids: list[UUID]) -> Mapping[UUID, Position]:
        return await read_positions(self._db, ids)

    async def _history(self, cursors: list[Cursor]) -> Mapping[Cursor, list[TaskEvent]]:
        """A page after each cursor; an empty one if nothing is kept there. The same task may be asked for twice."""
        pages: dict[Cursor, list[TaskEvent]] = {}
        for group in _distinct_tasks(cursors):
            rows = await read_events(self._db, group, per_task=PAGE_EVENTS, limit=PAGE_EVENTS * len(group))
            events: dict[UUID, list[TaskEvent]] = {task_id: [] for task_id, _ in group}
            for row in rows:
                events[row.task_id].append(event_message(row))
            pages |= {(task_id, after): events[task_id] for task_id, after in group}
        return pages


def _distinct_tasks(cursors: list[Cursor]) -> list[list[Cursor]]:
    """Split so that no group asks for a task twice: rows come back with the task's id and not with the cursor."""
    groups: list[dict[UUID, int]] = []
    for task_id, after in cursors:
        group = next((group for group in groups if task_id not in group), None)
        if group is None:
            groups.append({task_id: after})
        else:
            group[task_id] = after
    return [list(group.items()) for group in groups]
