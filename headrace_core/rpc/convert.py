"""From records of the database to messages of the API: the one place that knows both spellings."""

import functools
import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, Value
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import error_pb2, event_pb2, task_pb2
from headrace_core.tasks.model import MERGE, TaskRecord
from headrace_core.tasks.reading import AttemptRecord, EventRecord, FullTask, ShardRecord

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATES = {name.removeprefix("TASK_STATE_"): number for name, number in task_pb2.TaskState.items()}
_REASONS = {name.removeprefix("REASON_"): number for name, number in error_pb2.Reason.items()}


def task_message(record: TaskRecord) -> task_pb2.Task:
    """The basic view. `due_time` only while PENDING, and only if later than the creation: else there is no wait."""
    message = task_pb2.Task()
    fill_task(message, record)
    return message


def fill_task(message: task_pb2.Task, record: TaskRecord) -> None:
    """As `task_message`, into an empty message: a part of a larger one is filled where it stands, and not copied.

    What is empty is not set, which is the same on the wire and takes half the time for a task that was just accepted.
    """
    message.id = str(record.id)
    message.namespace = record.namespace
    message.kind = record.kind
    message.queue = record.queue
    message.priority = task_pb2.Priority.ValueType(record.priority)
    message.state = state_number(record.state)
    message.generation = record.generation
    message.sequence = record.sequence
    if record.labels:
        message.labels.update(record.labels)
    if record.idempotency_key is not None:
        message.idempotency_key = record.idempotency_key
    _fill_budgets(message.budgets, record)
    _fill_progress(message.progress, record)
    message.create_time.CopyFrom(_known(record.created_at))
    message.update_time.CopyFrom(_known(record.updated_at))
    if record.state == "PENDING" and record.due_at > record.created_at:
        message.due_time.CopyFrom(_known(record.due_at))
    if record.deadline is not None:
        message.deadline.CopyFrom(_known(record.deadline))
    if record.attempt or record.ended_at is not None or record.reason:
        _fill_history(message, record)


def _fill_progress(message: task_pb2.Progress, record: TaskRecord) -> None:
    message.SetInParent()
    if fraction := _fraction(record):
        message.fraction = fraction
    if record.message:
        message.message = record.message
    if record.total_shards:
        message.done_shards = record.done_shards
        message.total_shards = record.total_shards


def _fill_history(message: task_pb2.Task, record: TaskRecord) -> None:
    """What a task has once it was started, or ended."""
    message.reason = reason_number(record.reason)
    message.attempts = record.attempt
    message.worker = record.worker
    if record.started_at is not None:
        message.start_time.CopyFrom(_known(record.started_at))
    if record.ended_at is not None:
        message.end_time.CopyFrom(_known(record.ended_at))
    if (error := error_message(record.error)) is not None:
        message.error.CopyFrom(error)


def full_task_message(full: FullTask) -> task_pb2.Task:
    """The full view: with payload, result, attempts and shards; a result only if COMPLETED.

    A result of 1 MiB takes 0.1 s and more: call it in a thread where a loop serves others meanwhile.
    """
    message = task_message(full.record)
    message.payload_json = full.payload
    if full.result is not None and full.record.state == "COMPLETED":
        message.result_json = full.result
        # A level of JSON is three of protobuf, of which parsers take 100: the 32 that a result may have just fit.
        _fill(message.result, json.loads(full.result))
    message.attempt_history.extend(attempt_message(attempt) for attempt in full.attempts)
    message.shards.extend(shard_message(shard) for shard in full.shards)
    return message


def attempt_message(record: AttemptRecord) -> task_pb2.Attempt:
    """One start of a unit."""
    unit_type = task_pb2.UnitType.Value(f"UNIT_TYPE_{record.unit_type}")
    return task_pb2.Attempt(
        unit=task_pb2.Unit(type=unit_type, shard_index=record.shard_index or 0),
        generation=record.generation,
        attempt=record.attempt,
        epoch=record.epoch,
        worker=record.worker,
        start_time=timestamp(record.started_at),
        end_time=timestamp(record.ended_at),
        outcome=state_number(record.outcome),
        error=error_message(record.error),
    )


def shard_message(record: ShardRecord) -> task_pb2.Shard:
    """One shard."""
    return task_pb2.Shard(
        index=record.index,
        state=state_number(record.state),
        reason=reason_number(record.reason),
        attempts=record.attempt,
        budgets=budgets_message(record),
        worker=record.worker,
        start_time=timestamp(record.started_at),
        end_time=timestamp(record.ended_at),
        error=error_message(record.error),
    )


def event_message(record: EventRecord) -> event_pb2.TaskEvent:
    """One event of the log."""
    event = event_pb2.TaskEvent(
        task_id=str(record.task_id),
        sequence=record.sequence,
        generation=record.generation,
        unit=unit_message(record.unit, plan=record.plan),
        attempt=record.attempt,
        time=timestamp(record.at),
    )
    if record.type == "state":
        event.state_change.CopyFrom(_state_change(record))
    elif record.type == "progress":
        event.progress.CopyFrom(_progress_report(record))
    else:
        event.output.CopyFrom(event_pb2.OutputChunk(text=record.text or "", offset=record.byte_offset or 0))
    return event


def unit_message(unit: int, *, plan: bool = False) -> task_pb2.Unit:
    """The unit of this number; `plan`: the task's own lease covers the plan of a sharded kind."""
    if unit >= 0:
        return task_pb2.Unit(type=task_pb2.UNIT_TYPE_SHARD, shard_index=unit)
    if unit == MERGE:
        return task_pb2.Unit(type=task_pb2.UNIT_TYPE_MERGE)
    return task_pb2.Unit(type=task_pb2.UNIT_TYPE_PLAN if plan else task_pb2.UNIT_TYPE_TASK)


def budgets_message(record: TaskRecord | ShardRecord) -> task_pb2.Budgets:
    """The charges and their limits."""
    message = task_pb2.Budgets()
    _fill_budgets(message, record)
    return message


def _fill_budgets(message: task_pb2.Budgets, record: TaskRecord | ShardRecord) -> None:
    message.max_attempts = record.max_attempts
    message.max_crashes = record.max_crashes
    message.failures = record.failures
    message.crashes = record.crashes
    message.interruptions = record.interruptions


def error_message(error: bytes | None) -> task_pb2.TaskError | None:
    """The stored error, JSON text {"reason", "type", "message"}; None stays None."""
    if error is None:
        return None
    found = json.loads(error)
    return task_pb2.TaskError(
        reason=reason_number(found.get("reason") or ""),
        type=found.get("type") or "",
        message=found.get("message") or "",
    )


def timestamp(moment: datetime | None) -> Timestamp | None:
    """An aware datetime, exact to the microsecond; None stays None. Never change the answer: it may be shared."""
    return None if moment is None else _known(moment)


@functools.lru_cache(maxsize=256)
def _known(moment: datetime) -> Timestamp:
    """All tasks of one commit were created at one moment."""
    passed = moment - EPOCH
    return Timestamp(seconds=passed.days * 86_400 + passed.seconds, nanos=passed.microseconds * 1_000)


def state_number(name: str) -> task_pb2.TaskState.ValueType:
    """TASK_STATE_… of a stored state. Raises KeyError for a word that is none: a defect, not a client's error."""
    return _STATES[name]


def reason_number(name: str) -> error_pb2.Reason.ValueType:
    """REASON_… of a stored reason. Empty, a handler's own word, or one of a newer version: UNSPECIFIED."""
    return _REASONS.get(name, error_pb2.REASON_UNSPECIFIED)


def _fraction(record: TaskRecord) -> float:
    """Of a sharded task done / total; a task that has completed is at 1 whatever its handler reported."""
    if record.state == "COMPLETED":
        return 1.0
    return record.done_shards / record.total_shards if record.total_shards else record.fraction


def _state_change(record: EventRecord) -> event_pb2.StateChange:
    return event_pb2.StateChange(
        state=state_number(record.state or "UNSPECIFIED"),
        reason=reason_number(record.reason),
        error=error_message(record.error),
        due_time=timestamp(record.due_at) if record.state == "PENDING" else None,
        terminal=record.terminal,
    )


def _progress_report(record: EventRecord) -> event_pb2.ProgressReport:
    progress = task_pb2.Progress(
        fraction=record.fraction or 0.0,
        message=record.text or "",
        done_shards=record.done or 0,
        total_shards=record.total or 0,
    )
    return event_pb2.ProgressReport(progress=progress)


def _fill(value: Value, found: Any) -> None:
    """A parsed JSON value as protobuf's own type; a third of what json_format takes."""
    if isinstance(found, str):
        value.string_value = found
    elif isinstance(found, bool):
        value.bool_value = found
    elif found is None:
        value.null_value = NULL_VALUE
    elif isinstance(found, int | float):
        value.number_value = found
    elif isinstance(found, dict):
        value.struct_value.SetInParent()
        fields = value.struct_value.fields
        for key, member in found.items():
            _fill(fields[key], member)
    else:
        value.list_value.SetInParent()
        for element in found:
            _fill(value.list_value.values.add(), element)
