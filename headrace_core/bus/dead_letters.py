"""The dead letter stream: one entry for each open dead letter in Postgres, for people and tools that live on NATS.

The row in Postgres decides; the entry is published from it and removed when the dead letter is resolved.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import MESSAGE_NOT_FOUND, RequestRefused, StreamMissing
from headrace_core.bus.publisher import OutgoingMessage, Publisher, PublishOutcome, PublishResult
from headrace_core.bus.wire import parse_headers

HEADER_LENGTH = 200
ERROR_LENGTH = 8 * 1024  # bytes; JSON makes six of a control character, and the stream takes 64 KiB
CUT = "...(cut)"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry. `error` is the error as stored: JSON text, or any text, or None. `created_at` is aware UTC.

    `origin` is the task's id, or subject and stream sequence of a message that was no task; then `task_id` and
    `generation` are None. `id` must be fit for a subject: no dots, blanks or wildcards.
    """

    id: str
    queue: str
    reason: str
    error: bytes | None
    attempts: int
    origin: str
    created_at: datetime
    kind: str = ""
    namespace: str = ""
    task_id: UUID | None = None
    generation: int | None = None


class StoredDeadLetter(NamedTuple):
    """An entry as it is in the stream."""

    headers: Mapping[str, str]
    body: dict[str, Any]


class Entry(NamedTuple):
    """Which entry: the last two tokens of its subject."""

    queue: str
    id: str


async def publish_dead_letters(
    bus: Bus, publisher: Publisher, names: StreamNames, letters: Sequence[DeadLetter]
) -> list[PublishResult]:
    """Publish entries and return one result for each, in order. One that is there already counts as a duplicate.

    Raises the errors of `Bus.request` where a refused entry has to be looked up.
    """
    results = await publisher.publish([_outgoing(names, letter) for letter in letters])
    for index, result in enumerate(results):
        if result.outcome is PublishOutcome.FULL and await _is_there(bus, names, letters[index]):
            # Full is this subject, which holds one message: ours.
            results[index] = PublishResult(PublishOutcome.DUPLICATE)
    return results


async def list_dead_letters(bus: Bus, names: StreamNames) -> AsyncIterator[list[Entry]]:
    """The entries in the stream, a page of them at a time, in no order. Raises the errors of `Bus.request`.

    One that comes or goes meanwhile may be missed or told twice.
    """
    prefix = f"{names.subjects}.dlq."
    offset, total = 0, 1
    while offset < total:
        answer = await bus.request(
            f"$JS.API.STREAM.INFO.{names.dead_letters}", {"subjects_filter": f"{prefix}>", "offset": offset}
        )
        subjects = answer["state"].get("subjects") or {}
        if not subjects:
            return
        yield [Entry(*subject.removeprefix(prefix).split(".", 1)) for subject in subjects]
        offset += len(subjects)
        total = answer.get("total", 0)


async def remove_dead_letter(bus: Bus, names: StreamNames, queue: str, dead_letter_id: str) -> bool:
    """Remove an entry; False when there was none. Raises the errors of `Bus.request` except StreamMissing."""
    try:
        answer = await bus.request(
            f"$JS.API.STREAM.PURGE.{names.dead_letters}",
            {"filter": names.dead_letter_subject(queue, dead_letter_id)},
        )
    except StreamMissing:
        return False
    return bool(answer.get("purged"))


async def read_dead_letter(bus: Bus, names: StreamNames, queue: str, dead_letter_id: str) -> StoredDeadLetter | None:
    """Return an entry, None when there is none. Raises the errors of `Bus.request`."""
    try:
        answer = await bus.request(
            f"$JS.API.STREAM.MSG.GET.{names.dead_letters}",
            {"last_by_subj": names.dead_letter_subject(queue, dead_letter_id)},
        )
    except RequestRefused as error:
        if error.err_code == MESSAGE_NOT_FOUND:
            return None
        raise
    message = answer["message"]
    headers = parse_headers(base64.b64decode(message.get("hdrs", "")))
    return StoredDeadLetter(headers, json.loads(base64.b64decode(message["data"])))


async def _is_there(bus: Bus, names: StreamNames, letter: DeadLetter) -> bool:
    return await read_dead_letter(bus, names, letter.queue, letter.id) is not None


def _outgoing(names: StreamNames, letter: DeadLetter) -> OutgoingMessage:
    error = _parsed_error(letter.error)
    headers = {
        "Headrace-Reason": header_safe(letter.reason),
        "Headrace-Error": header_safe(_summary(error)),
        "Headrace-Attempts": str(letter.attempts),
        "Headrace-Origin": header_safe(letter.origin),
    }
    body = {
        "id": letter.id,
        "task": None if letter.task_id is None else str(letter.task_id),
        "generation": letter.generation,
        "queue": letter.queue,
        "kind": letter.kind,
        "namespace": letter.namespace,
        "reason": letter.reason,
        "error": error,
        "created": letter.created_at.isoformat(),
    }
    # Without an id: the broker would take a repetition for stored that was removed a moment ago. The subject holds one.
    return OutgoingMessage(
        names.dead_letter_subject(letter.queue, letter.id),
        json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),  # an error may hold a lone surrogate
        headers=headers,
    )


def header_safe(text: str) -> str:
    """Return `text` as a header value: printable ASCII in one line, at most 200 characters; the rest is `?`."""
    line = " ".join(text.split())
    safe = "".join(char if " " <= char <= "~" else "?" for char in line)
    return safe if len(safe) <= HEADER_LENGTH else safe[: HEADER_LENGTH - 3] + "..."


def _parsed_error(error: bytes | None) -> Any:
    """Return the stored error as JSON, as text where it is none, cut where it would not fit the stream."""
    if error is None:
        return None
    if len(error) > ERROR_LENGTH:
        return error[:ERROR_LENGTH].decode("utf-8", "replace") + CUT
    try:
        return json.loads(error)
    except ValueError:
        return error.decode("utf-8", "replace")


def _summary(error: Any) -> str:
    if isinstance(error, dict):
        return ": ".join(str(error[key]) for key in ("type", "message") if error.get(key))
    return "" if error is None else str(error)
