"""Words of the stream itself, as TaskEvent messages. Events of the log come from headrace_core.rpc.convert."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import event_pb2, task_pb2
from headrace_core.rpc import convert
from headrace_core.tasks.model import TaskRecord


def heartbeat_message() -> event_pb2.TaskEvent:
    """A sign of life; names no task and has no sequence. Its time is where a watch by filter may resume."""
    now = Timestamp()
    now.GetCurrentTime()
    return event_pb2.TaskEvent(time=now, heartbeat=event_pb2.Heartbeat())


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


def is_task_state(event: event_pb2.TaskEvent) -> bool:
    """True for a change of the task's own state. A shard's says nothing of it, except that a terminal event is always
    the task's and names the unit that caused it."""
    if not event.HasField("state_change"):
        return False
    return event.state_change.terminal or event.unit.type != task_pb2.UNIT_TYPE_SHARD


def _of_task(task: TaskRecord) -> event_pb2.TaskEvent:
    return event_pb2.TaskEvent(
        task_id=str(task.id),
        sequence=task.sequence,
        generation=task.generation,
        unit=task_pb2.Unit(type=task_pb2.UNIT_TYPE_TASK),
        attempt=task.attempt,
        time=convert.timestamp(task.updated_at),
    )
