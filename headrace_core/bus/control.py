"""The broadcast of cancellations on core NATS: consumers stop a cancelled task at once, not at its next renewal.

A lost one costs that delay and nothing else: the renewal finds the lease gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import BusError
from headrace_core.bus.subscription import Subscription
from headrace_core.bus.wire import Incoming
from headrace_core.telemetry import logs

PER_MESSAGE = 1000
ID_SIZE = 16

_log = logs.get("headrace.bus")


async def publish_cancel(bus: Bus, names: StreamNames, task_ids: Sequence[UUID]) -> bool:
    """Tell all consumers that these tasks are cancelled. Returns whether it was sent; does not wait."""
    for start in range(0, len(task_ids), PER_MESSAGE):
        part = task_ids[start : start + PER_MESSAGE]
        try:
            await bus.send(names.cancel_subject, b"".join([task_id.bytes for task_id in part]))
        except BusError as error:
            _log.info("cancellation not broadcast", action="cancel_not_sent", tasks=len(part), error=error.message)
            return False
    return True


async def subscribe_cancel(bus: Bus, names: StreamNames, callback: Callable[[list[UUID]], None]) -> Subscription:
    """Call `callback` with the ids of each broadcast, on the event loop, from now on and after every reconnect."""

    def receive(message: Incoming) -> None:
        callback(unpack_ids(message.data))

    return await bus.subscribe(names.cancel_subject, receive)


def unpack_ids(body: bytes) -> list[UUID]:
    """Return the ids in a broadcast; none, with a log line, for a body of another format."""
    if len(body) % ID_SIZE:
        _log.warning("a cancellation of another format", action="cancel_malformed", size=len(body))
        return []
    return [UUID(bytes=body[start : start + ID_SIZE]) for start in range(0, len(body), ID_SIZE)]
