"""Requests to the status service, checked: every violation at once, then the types that the rest works with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import status_pb2, task_pb2
from headrace_core.errors import InvalidFields, Violation
from headrace_core.tasks.model import TaskState
from headrace_core.tasks.reading import TaskFilter

MAX_WATCHED_IDS = 10_000
MAX_LABELS = 64
MAX_TEXT = 256

_CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_STATES = {number: name.removeprefix("TASK_STATE_") for name, number in task_pb2.TaskState.items()}
_MAX_SEQUENCE = 2**63 - 1  # a bigint in Postgres


@dataclass(frozen=True, slots=True)
class WatchStart:
    """What a stream begins with: these tasks, or a filter; and the sequences that the client has seen already."""

    task_ids: tuple[UUID, ...] = ()
    wanted: TaskFilter | None = None
    after: dict[UUID, int] = field(default_factory=dict)
    ended_since: datetime | None = None
    """With a filter: tasks that ended then or later are shown as well."""


def task_id(text: str, name: str = "id") -> UUID:
    """A task's id. Raises InvalidFields unless it is a UUID in its canonical text form."""
    violations: list[Violation] = []
    parsed = _task_id(text, name, violations)
    _refuse(violations)
    return parsed


def task_filter(message: status_pb2.TaskFilter) -> TaskFilter:
    """A filter. Raises InvalidFields with every violation."""
    violations: list[Violation] = []
    parsed = _filter(message, violations)
    _refuse(violations)
    return parsed


def canonical(message: status_pb2.TaskFilter) -> bytes:
    """The same bytes for the same filter: what a page token is bound to."""
    return message.SerializeToString(deterministic=True)


def watch_one(request: status_pb2.WatchTaskRequest) -> WatchStart:
    """Where WatchTask begins. Raises InvalidFields."""
    violations: list[Violation] = []
    asked = _task_id(request.id, "id", violations)
    after: dict[UUID, int] = {}
    if request.HasField("after_sequence"):
        after[asked] = _sequence(request.after_sequence, "after_sequence", violations)
    _refuse(violations)
    return WatchStart((asked,), after=after)


def watch_many(request: status_pb2.WatchTasksRequest) -> WatchStart:
    """Where WatchTasks begins. Raises InvalidFields with every violation."""
    violations: list[Violation] = []
    ids = tuple(dict.fromkeys(_task_ids(request.ids, violations)))
    after = _after_sequences(request, violations)
    wanted = _filter(request.filter, violations) if request.HasField("filter") else None
    if wanted is not None and wanted.states:
        violations.append(Violation("filter.states", "must be empty in a watch: it follows tasks through their states"))
    if bool(ids) == (wanted is not None):
        violations.append(Violation("ids", "give either ids or a filter, and not both"))
    if wanted is None:
        foreign = [str(key) for key in after if key not in set(ids)][:1]
        violations += [Violation(f"after_sequences[{key}]", "must be one of ids") for key in foreign]
    ended_since = _moment(request, "ended_since", "ended_since", violations)
    if wanted is None and ended_since is not None:
        violations.append(Violation("ended_since", "only with a filter"))
    _refuse(violations)
    return WatchStart(ids, wanted, after, ended_since)


def _task_ids(texts: Iterable[str], violations: list[Violation]) -> list[UUID]:
    listed = list(texts)
    if len(listed) > MAX_WATCHED_IDS:
        violations.append(Violation("ids", f"at most {MAX_WATCHED_IDS:,}; not {len(listed):,}"))
        return []
    return [_task_id(text, f"ids[{index}]", violations) for index, text in enumerate(listed)]


def _after_sequences(request: status_pb2.WatchTasksRequest, violations: list[Violation]) -> dict[UUID, int]:
    if len(request.after_sequences) > MAX_WATCHED_IDS:
        count = len(request.after_sequences)
        violations.append(Violation("after_sequences", f"at most {MAX_WATCHED_IDS:,} entries; not {count:,}"))
        return {}
    name = "after_sequences[{}]".format
    return {
        _task_id(key, name(key[:40]), violations): _sequence(value, name(key[:40]), violations)
        for key, value in request.after_sequences.items()
    }


def _task_id(text: str, name: str, violations: list[Violation]) -> UUID:
    if _CANONICAL.fullmatch(text):
        return UUID(text)
    violations.append(
        Violation(name, "a UUID in its canonical text form, for example 01890a5d-ac96-774b-bcce-b302099a8057")
    )
    return UUID(int=0)


def _sequence(value: int, name: str, violations: list[Violation]) -> int:
    if value > _MAX_SEQUENCE:
        violations.append(Violation(name, f"at most {_MAX_SEQUENCE}"))
    return value


def _filter(message: status_pb2.TaskFilter, violations: list[Violation]) -> TaskFilter:
    for name in ("namespace", "kind", "queue"):
        _check_text(getattr(message, name), f"filter.{name}", violations)
    if len(message.labels) > MAX_LABELS:
        violations.append(Violation("filter.labels", f"at most {MAX_LABELS}"))
    for key, value in message.labels.items():
        _check_text(key, "filter.labels", violations)
        _check_text(value, f"filter.labels[{key[:40]}]", violations)
    return TaskFilter(
        namespace=message.namespace,
        kind=message.kind,
        queue=message.queue,
        states=_states(message, violations),
        labels=tuple(sorted(message.labels.items())),
        created_after=_moment(message, "created_after", "filter.created_after", violations),
        created_before=_moment(message, "created_before", "filter.created_before", violations),
    )


def _check_text(text: str, name: str, violations: list[Violation]) -> None:
    if len(text) > MAX_TEXT or "\0" in text:
        violations.append(Violation(name, f"at most {MAX_TEXT} characters, none of them NUL"))


def _states(message: status_pb2.TaskFilter, violations: list[Violation]) -> tuple[TaskState, ...]:
    """UNSPECIFIED among them means any state."""
    unknown = [number for number in message.states if number not in _STATES]
    if unknown:
        violations.append(Violation("filter.states", f"{unknown[0]} is no TaskState"))
    if unknown or task_pb2.TASK_STATE_UNSPECIFIED in message.states:
        return ()
    return tuple(sorted({TaskState(_STATES[number]) for number in message.states}))


def _moment(message: Message, name: str, path: str, violations: list[Violation]) -> datetime | None:
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        violations.append(Violation(path, "a time from 0001-01-01 to 9999-12-31"))
        return None


def _refuse(violations: list[Violation]) -> None:
    if violations:
        raise InvalidFields.of(violations)
