"""The body of a message in the stream of tasks, read: the counterpart of `Publication.body`."""

from __future__ import annotations

import json
from uuid import UUID

from headrace_core.tasks.model import Delivered, UnitId


class Malformed(Exception):
    """The body of a message is no task's."""


def parse(body: bytes) -> Delivered | None:
    """The ids in a message; None for a probe.

    Raises:
        Malformed: it is neither.
    """
    try:
        content = json.loads(body.decode())
        if "probe" in content:
            return None
        return Delivered(UnitId(UUID(content["task"]), int(content["unit"])), int(content["dispatch"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def dead_letter_id(stored_at: int, sequence: int) -> str:
    """The id of a dead letter without a task: when the stream stored the message (nanoseconds), and its number in it.

    Both come with the message itself, delivered or read, so that whoever finds it gives it the same id, and one at the
    same number of a stream made anew another one.
    """
    return f"{stored_at}-{sequence}"
