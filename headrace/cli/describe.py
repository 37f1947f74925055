"""Tasks, events and dead letters in words. Pure: from a message to text."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.reasons import reason_name
from headrace.v1 import dead_letter_pb2, event_pb2, queue_pb2, task_pb2

TASK_COLUMNS = ("ID", "KIND", "QUEUE", "STATE", "REASON", "PROGRESS", "CREATED")
DEAD_LETTER_COLUMNS = ("ID", "QUEUE", "KIND", "REASON", "ERROR", "FAILED AT", "CLOSED")
MAX_INTERRUPTIONS = 100
"""The services' own limit, which no message carries: INTERRUPTED_TOO_OFTEN."""
QUEUE_COLUMNS = ("QUEUE", "STATE", "BACKLOG", "DELAYED", "IN FLIGHT", "DEAD LETTERS", "OLDEST", "IN/S", "OUT/S")


def state_name(state: int) -> str:
    """Return PENDING and the like; the number for a state that this version does not know."""
    if state not in task_pb2.TaskState.values():
        return str(state)
    return task_pb2.TaskState.Name(task_pb2.TaskState.ValueType(state)).removeprefix("TASK_STATE_")


def time_text(stamp: Timestamp) -> str:
    """Return the time in UTC to the second; "" if unset."""
    if not stamp.seconds:
        return ""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")


def error_text(error: task_pb2.TaskError) -> str:
    """Return type and message; "" if there is no error."""
    return ": ".join(part for part in (error.type, error.message) if part)


def progress_text(progress: task_pb2.Progress) -> str:
    """Return 40 % or 3/8 shards, with the message."""
    if progress.total_shards:
        amount = f"{progress.done_shards}/{progress.total_shards} shards"
    elif progress.fraction:
        amount = f"{progress.fraction:.0%}"
    else:
        amount = ""
    return " ".join(part for part in (amount, progress.message) if part)


def task_row(task: task_pb2.Task) -> tuple[str, ...]:
    """Return the cells of TASK_COLUMNS."""
    return (
        task.id,
        task.kind,
        task.queue,
        state_name(task.state),
        reason_name(task.reason),
        progress_text(task.progress),
        time_text(task.create_time),
    )


def task_fields(task: task_pb2.Task) -> list[tuple[str, str]]:
    """Return what is worth knowing about one task, for people."""
    return [
        ("id", task.id),
        ("kind", task.kind),
        ("queue", task.queue),
        ("namespace", task.namespace),
        ("state", state_name(task.state)),
        ("reason", reason_name(task.reason)),
        ("error", error_text(task.error)),
        ("progress", progress_text(task.progress)),
        *budget_fields(task.budgets),
        ("generation", str(task.generation) if task.generation > 1 else ""),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(task.labels.items()))),
        ("created", time_text(task.create_time)),
        ("due", time_text(task.due_time)),
        ("deadline", time_text(task.deadline)),
        ("started", time_text(task.start_time)),
        ("ended", time_text(task.end_time)),
        ("worker", task.worker),
    ]


def budget_fields(budgets: task_pb2.Budgets) -> list[tuple[str, str]]:
    """Return what is used of each budget: `1 of 3`; all empty for what has none, a message that was no task."""
    used = (
        ("failures", budgets.failures, budgets.max_attempts),
        ("crashes", budgets.crashes, budgets.max_crashes),
        ("interruptions", budgets.interruptions, MAX_INTERRUPTIONS if budgets.max_attempts else 0),
    )
    return [(name, f"{count} of {limit}" if limit else "") for name, count, limit in used]


def attempt_text(attempt: task_pb2.Attempt) -> str:
    """Return one line about an attempt."""
    parts = [
        time_text(attempt.start_time),
        unit_text(attempt.unit) or "task",
        f"attempt {attempt.attempt}",
        state_name(attempt.outcome),
        reason_name(attempt.error.reason),
        error_text(attempt.error),
    ]
    return "  ".join(part for part in parts if part)


def unit_text(unit: task_pb2.Unit) -> str:
    """Return shard 3, plan or merge; "" for a whole task."""
    if unit.type == task_pb2.UNIT_TYPE_SHARD:
        return f"shard {unit.shard_index}"
    if unit.type in {task_pb2.UNIT_TYPE_PLAN, task_pb2.UNIT_TYPE_MERGE}:
        return task_pb2.UnitType.Name(unit.type).removeprefix("UNIT_TYPE_").lower()
    return ""


def event_text(event: event_pb2.TaskEvent) -> str:
    """Return one line about an event; "" for what people need not see."""
    body = _event_body(event)
    if not body:
        return ""
    clock = time_text(event.time)[11:19]
    return "  ".join(part for part in (clock, unit_text(event.unit), body) if part)


def _event_body(event: event_pb2.TaskEvent) -> str:
    match event.WhichOneof("event"):
        case "snapshot":
            return _join(state_name(event.snapshot.state), progress_text(event.snapshot.progress))
        case "state_change":
            change = event.state_change
            return _join(state_name(change.state), reason_name(change.reason), error_text(change.error))
        case "progress":
            return _report_text(event)
        case "output":
            return event.output.text.rstrip("\n")
        case "gap":
            return f"events after {event.gap.after_sequence} are missing: {event.gap.cause}"
        case _:
            return ""


def _report_text(event: event_pb2.TaskEvent) -> str:
    report = event.progress.progress
    if event.unit.type == task_pb2.UNIT_TYPE_SHARD:
        # The fraction is the shard's own; the task's shards are counted in reports of the task.
        return " ".join(part for part in (f"{report.fraction:.0%}", report.message) if part)
    return progress_text(report)


def dead_letter_row(letter: dead_letter_pb2.DeadLetter) -> tuple[str, ...]:
    """Return the cells of DEAD_LETTER_COLUMNS."""
    return (
        letter.id,
        letter.queue,
        letter.kind,
        reason_name(letter.reason),
        error_text(letter.error),
        time_text(letter.create_time),
        _resolution(letter),
    )


def dead_letter_fields(letter: dead_letter_pb2.DeadLetter) -> list[tuple[str, str]]:
    """Return what is worth knowing about one dead letter, for people."""
    return [
        ("id", letter.id),
        ("task", letter.task_id),
        ("queue", letter.queue),
        ("kind", letter.kind),
        ("namespace", letter.namespace),
        ("reason", reason_name(letter.reason)),
        ("error", error_text(letter.error)),
        *budget_fields(letter.budgets),
        ("failed", time_text(letter.create_time)),
        ("closed", _join(_resolution(letter), time_text(letter.resolve_time))),
        ("payload", letter.payload_json.decode(errors="replace")),
    ]


def queue_row(queue: queue_pb2.Queue) -> tuple[str, ...]:
    """Return the cells of QUEUE_COLUMNS."""
    oldest = queue.oldest_age.seconds
    return (
        queue.name,
        "paused" if queue.paused else "open",
        str(queue.backlog),
        str(queue.delayed),
        str(queue.in_flight),
        str(queue.dead_letters),
        f"{oldest} s" if oldest else "",
        f"{queue.submit_rate:.1f}",
        f"{queue.finish_rate:.1f}",
    )


def _resolution(letter: dead_letter_pb2.DeadLetter) -> str:
    if not letter.resolution:
        return ""
    name = dead_letter_pb2.DeadLetterResolution.Name(letter.resolution)
    return name.removeprefix("DEAD_LETTER_RESOLUTION_")


def _join(*parts: str) -> str:
    return "  ".join(part for part in parts if part)
