"""What the RPCs of the producer share about their arguments: ids, deadlines, times."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from headrace_core.errors import DatabaseUnavailable, InvalidFields, Violation
from producer.validation import moment, timestamp_violation

LONGEST_CALL = 5.0
SHARE_OF_DEADLINE = 0.9

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Call(Protocol):
    """What is used of a call's context."""

    def time_remaining(self) -> Any:
        """Seconds that the client still waits; None: it has not said."""


def within(call: Call, longest: float = LONGEST_CALL) -> float:
    """How many seconds to work on a call: less than its client waits, so that our answer is the one it gets."""
    remaining = call.time_remaining()
    return longest if remaining is None else min(longest, max(remaining, 0.0) * SHARE_OF_DEADLINE)


@asynccontextmanager
async def answered_within(call: Call, longest: float = LONGEST_CALL) -> AsyncIterator[None]:
    """Work on a call while its client waits. Raises DatabaseUnavailable when the time is up: the outcome is unknown."""
    try:
        async with asyncio.timeout(within(call, longest)):
            yield
    except TimeoutError as error:
        raise DatabaseUnavailable(
            "Postgres did not answer in time; what has been done so far is unknown: look, then repeat", retry_after=1.0
        ) from error


def is_uuid(text: str) -> bool:
    """True for the canonical text of a UUID."""
    return _UUID.fullmatch(text) is not None


def task_id(text: str, field: str = "id") -> UUID:
    """The id of a task. Raises InvalidFields if it is no UUID."""
    if not is_uuid(text):
        raise InvalidFields.of([Violation(field, f"{json.dumps(text[:80])} is no UUID")])
    return UUID(text)


def future_time(field: str, timestamp: Timestamp) -> datetime:
    """A time that must lie ahead. Raises InvalidFields."""
    violation = timestamp_violation(field, timestamp)
    if violation is None and moment(timestamp) <= datetime.now(UTC):
        violation = Violation(field, f"{moment(timestamp).isoformat()} has passed; it must lie in the future")
    if violation is not None:
        raise InvalidFields.of([violation])
    return moment(timestamp)
