"""The body of a message in the stream of tasks, read: the counterpart of `Publication.body`."""

from __future__ import annotations

import json
from uuid import UUID

from headrace_core.tasks.model import Delivered, UnitId

_MAX_UNIT = 2**31 - 1
_MAX_DISPATCH = 2**63 - 1


class Malformed(Exception):
    """The body of a message is no task's."""


def parse(body: bytes) -> Delivered | None:
    """The ids in a message; None for a probe.

    Raises:
        Malformed: it is neither.
    """
    try:
        content = json.loads(body.decode())
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        if "probe" in content:
            return None
        unit, dispatch = content["unit"], content["dispatch"]
        if not (_fits(unit, _MAX_UNIT) and _fits(dispatch, _MAX_DISPATCH)):
            # Postgres could not even be asked for it, nor for what is claimed in the same statement.
            raise ValueError("unit or dispatch is no number that a unit has")
        return Delivered(UnitId(UUID(content["task"]), unit), dispatch)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def _fits(number: object, largest: int) -> bool:
    """Whether it is a whole number of a column's type."""
    return type(number) is int and -largest - 1 <= number <= largest


def dead_letter_id(stored_at: int, sequence: int) -> str:
    """The id of a dead letter without a task: when the stream stored the message (nanoseconds), and its number in it.

    Both come with the message itself, delivered or read, so that whoever finds it gives it the same id, and one at the
    same number of a stream made anew another one.
    """
    return f"{stored_at}-{sequence}"
