"""What a submit must look like: every limit of the request in one place, every violation said at once.

Two sorts of checks. Those that depend on the request alone come first, here. Those that depend on the time
come from `time_violations`; they, and whatever depends on load or registration, must not refuse the
repetition of a request that was accepted before (design, rule 12), so the caller looks the idempotency key
up before it lets them speak.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from headrace import json_text
from headrace.v1 import producer_pb2
from headrace_core.errors import InvalidFields, Violation
from headrace_core.tasks.model import Priority
from producer.payload import payload_text

MAX_REQUESTS = 1000
MAX_KEY = 256
MAX_LABELS = 32
MAX_LABEL_VALUE = 256
MAX_ATTEMPTS = 100
RUN_AT_GRACE = timedelta(minutes=1)
RUN_AT_HORIZON = timedelta(days=366)
DEFAULT_NAMESPACE = "default"

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_KIND = re.compile(r"[a-zA-Z0-9._-]{1,128}")
_LABEL_KEY = re.compile(r"[a-zA-Z0-9._/-]{1,64}")
# json.dumps makes an encoder for each call with options of its own.
_COMPACT = json.JSONEncoder(separators=(",", ":"))
# Calling an enumeration takes six times as long as looking a number up.
_PRIORITIES = {0: Priority.NORMAL} | {int(priority): priority for priority in Priority}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SubmitRequest(NamedTuple):
    """A request that keeps every limit that depends on itself alone. `queue` is empty for "the kind's"."""

    namespace: str
    kind: str
    queue: str
    payload: bytes
    value: Any
    fingerprint: bytes
    idempotency_key: str | None
    labels: dict[str, str]
    priority: Priority
    run_at: datetime | None
    deadline: datetime | None
    max_attempts: int | None


def validated(message: producer_pb2.SubmitTaskRequest, now: datetime) -> SubmitRequest:
    """`message` checked and typed.

    Raises:
        InvalidFields: with every violation there is, those of the time `now` included.
    """
    payload = payload_text(message)
    payload_field = message.WhichOneof("input") or "payload_json"
    value, complaints = json_text.examine(payload, require_object=True, what="the payload")
    violations = [Violation(payload_field, complaint) for complaint in complaints]
    violations += _field_violations(message)
    if violations:
        raise InvalidFields.of([*violations, *_times(message, now)])
    return SubmitRequest(
        namespace=message.namespace or DEFAULT_NAMESPACE,
        kind=message.kind,
        queue=message.queue,
        payload=payload,
        value=value,
        fingerprint=_fingerprint(message, payload),
        idempotency_key=message.idempotency_key if message.HasField("idempotency_key") else None,
        labels=dict(message.labels) if message.labels else {},
        priority=_PRIORITIES[message.priority],
        run_at=moment(message.run_at) if message.HasField("run_at") else None,
        deadline=moment(message.deadline) if message.HasField("deadline") else None,
        max_attempts=message.max_attempts if message.HasField("max_attempts") else None,
    )


def time_violations(run_at: datetime | None, deadline: datetime | None, now: datetime) -> list[Violation]:
    """What is wrong with the times as seen from `now`."""
    found: list[Violation] = []
    if run_at is not None and run_at < now - RUN_AT_GRACE:
        found.append(Violation("run_at", f"{run_at.isoformat()} has passed; at most one minute ago is taken as now"))
    if run_at is not None and run_at > now + RUN_AT_HORIZON:
        found.append(Violation("run_at", f"{run_at.isoformat()} is more than {RUN_AT_HORIZON.days} days ahead"))
    if deadline is not None and deadline <= now:
        found.append(Violation("deadline", f"{deadline.isoformat()} has passed; it must lie in the future"))
    return found


def moment(timestamp: Timestamp) -> datetime:
    """A valid Timestamp as an aware datetime in UTC, cut to microseconds."""
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)


def timestamp_violation(field: str, timestamp: Timestamp) -> Violation | None:
    """A Timestamp that is no time, said; its wire form allows years and fractions that do not exist."""
    if -62135596800 <= timestamp.seconds <= 253402300799 and 0 <= timestamp.nanos < 1_000_000_000:
        return None
    return Violation(field, "it is no valid timestamp; years 1 to 9999, 0 to 999999999 nanos")


def _field_violations(message: producer_pb2.SubmitTaskRequest) -> Iterator[Violation]:
    if message.namespace and not _NAME.fullmatch(message.namespace):
        yield Violation("namespace", f"{_shown(message.namespace)} does not match [a-z0-9_-]{{1,64}}")
    if not _KIND.fullmatch(message.kind):
        said = f"{_shown(message.kind)} does not match [a-zA-Z0-9._-]{{1,128}}" if message.kind else "it is required"
        yield Violation("kind", said)
    if message.queue and not _NAME.fullmatch(message.queue):
        yield Violation("queue", f"{_shown(message.queue)} does not match [a-z0-9_-]{{1,64}}")
    if message.HasField("idempotency_key"):
        yield from _key_violations(message.idempotency_key)
    if message.labels:
        yield from _label_violations(message.labels)
    if message.priority not in (0, 1, 2, 3):
        yield Violation("priority", f"{message.priority} is none of PRIORITY_LOW, PRIORITY_NORMAL, PRIORITY_HIGH")
    if message.HasField("max_attempts") and not 1 <= message.max_attempts <= MAX_ATTEMPTS:
        yield Violation("max_attempts", f"{message.max_attempts} is not within 1 to {MAX_ATTEMPTS}")
    if message.HasField("run_at") or message.HasField("deadline"):
        yield from _timestamp_violations(message)


def _key_violations(key: str) -> Iterator[Violation]:
    if not 1 <= len(key) <= MAX_KEY:
        yield Violation("idempotency_key", f"it has {len(key)} characters; 1 to {MAX_KEY} are allowed")
    if "\0" in key:
        yield Violation("idempotency_key", "it contains the character NUL")


def _label_violations(labels: Mapping[str, str]) -> Iterator[Violation]:
    if len(labels) > MAX_LABELS:
        yield Violation("labels", f"there are {len(labels)}; at most {MAX_LABELS} are allowed")
    for key, value in sorted(labels.items())[: 2 * MAX_LABELS]:
        field = f"labels[{json.dumps(key[:64])}]"
        if not _LABEL_KEY.fullmatch(key):
            yield Violation(field, "the key does not match [a-zA-Z0-9._/-]{1,64}")
        if len(value) > MAX_LABEL_VALUE:
            yield Violation(field, f"the value has {len(value)} characters; at most {MAX_LABEL_VALUE} are allowed")
        if "\0" in value:
            yield Violation(field, "the value contains the character NUL")


def _timestamp_violations(message: producer_pb2.SubmitTaskRequest) -> Iterator[Violation]:
    found = [
        timestamp_violation(field, getattr(message, field))
        for field in ("run_at", "deadline")
        if message.HasField(field)
    ]
    yield from (violation for violation in found if violation is not None)
    both = message.HasField("run_at") and message.HasField("deadline")
    if both and not any(found) and moment(message.deadline) <= moment(message.run_at):
        yield Violation("deadline", "it must be after run_at")


def _times(message: producer_pb2.SubmitTaskRequest, now: datetime) -> list[Violation]:
    times = {
        field: moment(getattr(message, field))
        for field in ("run_at", "deadline")
        if message.HasField(field) and timestamp_violation(field, getattr(message, field)) is None
    }
    return time_violations(times.get("run_at"), times.get("deadline"), now)


def _fingerprint(message: producer_pb2.SubmitTaskRequest, payload: bytes) -> bytes:
    """SHA-256 over the request as sent, without its key: what another request under the same key is known by.

    Stored for as long as the task, so its form is fixed here and does not lean on protobuf's serialisation.
    """
    digest = _digest_of_head(
        message.namespace or DEFAULT_NAMESPACE,
        message.kind,
        message.queue,
        tuple(sorted(message.labels.items())) if message.labels else (),
        message.priority,
        _sent_time(message, "run_at"),
        _sent_time(message, "deadline"),
        message.max_attempts if message.HasField("max_attempts") else None,
        message.WhichOneof("input"),
    ).copy()
    digest.update(payload)
    return digest.digest()


@functools.lru_cache(maxsize=1024)
def _digest_of_head(*head: object) -> hashlib._Hash:
    """Begun with everything but the payload, which many requests have in common. Copy it before going on."""
    return hashlib.sha256(_COMPACT.encode([1, *head]).encode() + b"\0")


def _sent_time(message: producer_pb2.SubmitTaskRequest, field: str) -> tuple[int, int] | None:
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    timestamp = getattr(message, field)
    return timestamp.seconds, timestamp.nanos


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= 80 else text[:80] + "…")
