"""Rows of `headrace_core.task_records` as TaskRecord: the one place that knows both."""

from typing import Any

from headrace_core.db.pool import Transaction
from headrace_core.tasks.model import TaskRecord, TaskState


def task_record(row: dict[str, Any]) -> TaskRecord:
    """A row, which may have more columns, as a TaskRecord."""
    values = {name: row[name] for name in TaskRecord._fields}
    values["state"] = TaskState(values["state"])
    return TaskRecord(**values)


async def read_records(tx: Transaction, task_ids: list[Any]) -> dict[Any, TaskRecord]:
    """The tasks of these ids as this transaction sees them, by id."""
    rows = await tx.fetch("select * from headrace_core.task_records where id = any(%(ids)s)", {"ids": task_ids})
    return {row["id"]: task_record(row) for row in rows}
