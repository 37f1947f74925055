"""Interest in a subject: kept over connections, ended without losing what is on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from nats.aio.subscription import Subscription as ClientSubscription
from nats.errors import Error as ClientError

from headrace_core.bus.errors import CLIENT_ERRORS, BusError
from headrace_core.bus.wire import DirectClient, Incoming
from headrace_core.telemetry import logs

if TYPE_CHECKING:
    from headrace_core.bus.connection import Bus

MessageCallback = Callable[[Incoming], None]

_log = logs.get("headrace.bus")


class Subscription:
    """Interest in a subject, on every connection from now on. `Bus.subscribe` makes and starts one."""

    def __init__(self, bus: Bus, subject: str, callback: MessageCallback) -> None:
        self.subject = subject
        self._bus = bus
        self._callback = callback
        self._client: DirectClient | None = None
        self._live: ClientSubscription | None = None

    async def start(self) -> None:
        """Make it, now if connected, and on every later connection."""
        await self._bus.remember(self)

    async def renew(self) -> None:
        """Make it anew on the same connection: the server may have lost it."""
        await self.unsubscribe()
        await self.start()

    async def unsubscribe(self) -> None:
        """End it at once; messages on their way are dropped. Idempotent."""
        self._bus.forget(self)
        live, client = self._live, self._client
        self._live = self._client = None
        if live is None or client is None:
            return
        client.direct.pop(live._id, None)
        try:
            await live.unsubscribe()
        except ClientError:
            return  # the connection is gone, and the subscription with it

    async def drain(self, within: float = 1.0) -> None:
        """End it at the server, deliver what was on its way, then forget it, in `within` seconds. Idempotent."""
        self._bus.forget(self)
        live = self._live
        if live is not None:
            try:
                # Not the library's drain: it sends its PING before the UNSUB and so waits for too little.
                async with asyncio.timeout(within):
                    await live._conn._send_unsubscribe(live._id)
                    await self._bus.flush(within)
            except (BusError, *CLIENT_ERRORS):
                _log.info("the bus went away before a subscription was drained", action="bus_drain_cut")
        await self.unsubscribe()

    async def attach(self, client: DirectClient) -> None:
        """Make it on a connection, once. For Bus only."""
        if self._client is not client:
            self._client = client
            self._live = await client.subscribe(self.subject)
            client.direct[self._live._id] = self._receive

    def _receive(self, message: Incoming) -> None:
        try:
            self._callback(message)
        except Exception:  # noqa: BLE001 - the next message has the same right to be delivered; said loudly
            _log.exception("a bus callback failed", action="bus_callback_failed", subject=self.subject)
