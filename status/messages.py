"""Rows of the table of events, and words of the stream itself, as TaskEvent messages."""

from __future__ import annotations

from uuid import UUID

from headrace.v1 import event_pb2, task_pb2
from headrace_core.rpc import convert
from headrace_core.tasks.model import MERGE, TaskRecord
from headrace_core.tasks.reading import EventRecord


def event_message(row: EventRecord) -> event_pb2.TaskEvent:
    """One row. Made once and shared by everybody who watches the task: never change it."""
    event = event_pb2.TaskEvent(
        task_id=str(row.task_id),
        sequence=row.sequence,
        generation=row.generation,
        unit=_unit(row),
        attempt=row.attempt,
    )
    event.time.FromDatetime(row.at)
    if row.type == "state":
        event.state_change.CopyFrom(_state_change(row))
    elif row.type == "progress":
        event.progress.progress.CopyFrom(_progress(row))
    else:
        event.output.text = row.text or ""
        event.output.offset = row.byte_offset or 0
    return event


def is_task_state(event: event_pb2.TaskEvent) -> bool:
    """True for a change of the task's own state; a shard's says nothing about how the task stands."""
    return event.HasField("state_change") and event.unit.type != task_pb2.UNIT_TYPE_SHARD


def snapshot_message(task: TaskRecord) -> event_pb2.TaskEvent:
    """The task as it is."""
    event = _of_task(task)
    event.snapshot.CopyFrom(convert.task_message(task))
    return event


def gap_message(task: TaskRecord, after: int, cause: str) -> event_pb2.TaskEvent:
    """Events after `after` cannot be shown; the snapshot of `task` follows."""
    event = _of_task(task)
    event.gap.after_sequence = after
    event.gap.cause = cause
    return event


HEARTBEAT = event_pb2.TaskEvent(heartbeat=event_pb2.Heartbeat())
"""A sign of life; names no task and has no sequence."""


def task_uuid(event: event_pb2.TaskEvent) -> UUID:
    """The task that an event is about."""
    return UUID(event.task_id)


def _of_task(task: TaskRecord) -> event_pb2.TaskEvent:
    event = event_pb2.TaskEvent(
        task_id=str(task.id),
        sequence=task.sequence,
        generation=task.generation,
        unit=task_pb2.Unit(type=task_pb2.UNIT_TYPE_TASK),
        attempt=task.attempt,
    )
    event.time.FromDatetime(task.updated_at)
    return event


def _unit(row: EventRecord) -> task_pb2.Unit:
    if row.unit >= 0:
        return task_pb2.Unit(type=task_pb2.UNIT_TYPE_SHARD, shard_index=row.unit)
    if row.unit == MERGE:
        return task_pb2.Unit(type=task_pb2.UNIT_TYPE_MERGE)
    return task_pb2.Unit(type=task_pb2.UNIT_TYPE_PLAN if row.plan else task_pb2.UNIT_TYPE_TASK)


def _state_change(row: EventRecord) -> event_pb2.StateChange:
    change = event_pb2.StateChange(
        state=convert.state_number(row.state or ""),
        reason=convert.reason_number(row.reason),
        error=convert.error_message(row.error),
        terminal=row.terminal and row.unit < 0,
    )
    if row.due_at is not None:
        change.due_time.FromDatetime(row.due_at)
    return change


def _progress(row: EventRecord) -> task_pb2.Progress:
    return task_pb2.Progress(
        fraction=row.fraction or 0.0,
        message=row.text or "",
        done_shards=row.done or 0,
        total_shards=row.total or 0,
    )
