"""The stream of tasks as the reconciler looks at it: how far each durable has come, and single messages.

A message leaves a work queue by its acknowledgement. One that was delivered three times in vain stays, is never
delivered again, and the durable's acknowledgement floor passes over it (measured on nats-server 2.15).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import LEVELS, StreamNames
from headrace_core.bus.errors import MESSAGE_NOT_FOUND, RequestRefused
from headrace_core.bus.topology import consumers, stream_info

NANOSECOND_DIGITS = 9
NANOSECONDS = 1_000_000_000
MAX_SEQUENCE = 2**63 - 1
"""Of a message: more than Postgres notes, and than a stream ever has."""
_DURABLE = re.compile(r"[a-zA-Z0-9_-]{1,80}")


@dataclass(frozen=True, slots=True)
class DurableView:
    """How far one level of one queue has come. Sequences are the stream's.

    Everything up to `floor` is acknowledged, or will never be delivered again. Everything up to `delivered` has been
    delivered at least once. The server's own floor waits for an acknowledgement to pass dead messages; where nothing is
    outstanding, it is as good as at `delivered`.
    """

    queue: str
    level: str
    floor: int
    delivered: int
    held: int
    """Messages of its subject that it still has to deliver, or waits for an acknowledgement of."""


@dataclass(frozen=True, slots=True)
class TaskStreamView:
    """The stream at one moment; `created` is its identity."""

    created: str
    first: int
    """Sequence of the oldest message; everything before has gone."""
    messages: int
    durables: tuple[DurableView, ...]

    @property
    def surplus(self) -> int:
        """Messages that no durable is going to deliver."""
        return self.messages - sum(durable.held for durable in self.durables)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as the stream has it."""

    sequence: int
    subject: str
    body: bytes
    at: int
    """When it was stored, by the server's clock: nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """The server's word that it gave a message up."""

    durable: str
    sequence: int
    at: int
    """By the server's clock: nanoseconds since 1970."""


async def look_at_tasks(bus: Bus, names: StreamNames) -> TaskStreamView:
    """Look at the stream, durables first: their floors are never ahead of what `created` belongs to.

    Raises StreamMissing and the errors of `Bus.request`.
    """
    before = await stream_info(bus, names.tasks)
    found = await consumers(bus, names.tasks)
    state = before["state"]
    durables = tuple(view for name, info in found.items() if (view := _durable_view(name, info)))
    return TaskStreamView(str(before["created"]), state["first_seq"], state["messages"], durables)


async def read_message(bus: Bus, stream: str, sequence: int) -> StoredMessage | None:
    """The message at `sequence`; None if it has gone. Raises the errors of `Bus.request`."""
    return await _get(bus, stream, {"seq": sequence})


async def next_message(bus: Bus, stream: str, subject: str, sequence: int) -> StoredMessage | None:
    """The first message of `subject` at `sequence` or later; None without any. Raises the errors of `Bus.request`."""
    return await _get(bus, stream, {"seq": sequence, "next_by_subj": subject})


async def delete_message(bus: Bus, stream: str, sequence: int) -> None:
    """Delete a message, without overwriting it on the disk (eight times as fast). Raises the errors of `Bus.request`.

    One that has gone already is no error.
    """
    try:
        await bus.request(f"$JS.API.STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
    except RequestRefused:
        if await read_message(bus, stream, sequence) is not None:
            raise


def parse_advisory(body: bytes) -> Advisory:
    """Read an advisory about a message: MAX_DELIVERIES or MSG_TERMINATED. Raises ValueError for anything else."""
    try:
        content = json.loads(body)
        found = Advisory(str(content["consumer"]), int(content["stream_seq"]), nanoseconds(content["timestamp"]))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an advisory about a message: {type(error).__name__}: {error}") from error
    # Anybody may publish one. What neither the server nor Postgres can be asked for would come again for ever.
    if not (_DURABLE.fullmatch(found.durable) and 0 < found.sequence <= MAX_SEQUENCE):
        raise ValueError("not an advisory about a message of a durable of ours")
    return found


def nanoseconds(time: str) -> int:
    """A time as the server writes it (RFC 3339, up to nine digits of a second) in nanoseconds since 1970."""
    date, _, fraction = time.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(date + "+00:00").timestamp())
    return seconds * NANOSECONDS + int(fraction[:NANOSECOND_DIGITS].ljust(NANOSECOND_DIGITS, "0"))


def _durable_view(name: str, info: Mapping[str, Any]) -> DurableView | None:
    queue, _, level = name.rpartition("-")
    if level not in LEVELS:
        return None
    delivered = info["delivered"]["stream_seq"]
    floor = info["ack_floor"]["stream_seq"] if info["num_ack_pending"] else delivered
    return DurableView(queue, level, floor, delivered, info["num_pending"] + info["num_ack_pending"])


async def _get(bus: Bus, stream: str, wanted: Mapping[str, Any]) -> StoredMessage | None:
    try:
        answer = await bus.request(f"$JS.API.STREAM.MSG.GET.{stream}", wanted)
    except RequestRefused as error:
        if error.err_code == MESSAGE_NOT_FOUND:
            return None
        raise
    found = answer["message"]
    body = base64.b64decode(found.get("data", ""))
    return StoredMessage(found["seq"], found["subject"], body, nanoseconds(found["time"]))
