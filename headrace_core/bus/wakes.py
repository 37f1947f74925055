"""Wake-ups: "this task has events up to that number", on core NATS. The events themselves are in Postgres.

Losing one costs a watcher two seconds (it re-reads), so nothing is confirmed or repeated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import BusError
from headrace_core.bus.subscription import Subscription
from headrace_core.bus.wire import Incoming
from headrace_core.telemetry import logs

PER_MESSAGE = 1000
PACKED = struct.Struct(">16sQ")

_log = logs.get("headrace.bus")


class WakeLike(Protocol):
    """A task and the number of its last event."""

    @property
    def task_id(self) -> UUID:
        """The task."""

    @property
    def sequence(self) -> int:
        """Its last event."""


class WakeHint(NamedTuple):
    """A wake-up as received: `(task_id, sequence)`."""

    task_id: UUID
    sequence: int


class WakePublisher:
    """Sends wake-ups. `dropped` counts those that could not be sent, for a metric."""

    def __init__(self, bus: Bus, names: StreamNames) -> None:
        self.dropped = 0
        self._bus = bus
        self._subject = names.wake_subject

    async def publish(self, wakes: Sequence[WakeLike]) -> None:
        """Send and forget; does not wait and does not raise for a broker that is away."""
        for start in range(0, len(wakes), PER_MESSAGE):
            part = wakes[start : start + PER_MESSAGE]
            try:
                await self._bus.send(self._subject, pack_wakes(part))
            except BusError:
                self.dropped += len(part)


async def subscribe_wakes(bus: Bus, names: StreamNames, callback: Callable[[list[WakeHint]], None]) -> Subscription:
    """Call `callback` with the wake-ups of each message, on the event loop, from now on and after every reconnect."""

    def receive(message: Incoming) -> None:
        callback(list(unpack_wakes(message.data)))

    return await bus.subscribe(names.wake_subject, receive)


def pack_wakes(wakes: Sequence[WakeLike]) -> bytes:
    """Return 24 bytes for each: the id, then the number, big-endian."""
    return b"".join([PACKED.pack(wake.task_id.bytes, wake.sequence) for wake in wakes])


def unpack_wakes(body: bytes) -> Iterator[WakeHint]:
    """Yield what `pack_wakes` packed; nothing, with a log line, for a body that it did not make."""
    if len(body) % PACKED.size:
        _log.warning("a wake-up of another format", action="wake_malformed", size=len(body))
        return
    for raw, sequence in PACKED.iter_unpack(body):
        yield WakeHint(UUID(bytes=raw), sequence)
