"""What moves the watches: wakes from the bus, and the sweep that makes every lost wake cost two seconds at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.subscription import Subscription
from headrace_core.bus.wakes import subscribe_wakes
from headrace_core.telemetry import metrics
from status.discovery import Discovery
from status.hub import Hub
from status.limits import WakeLike, WatchLimits


class Feed:
    """Wakes and sweeps for the hub and the discovery. `bus` is None where the system runs without a broker.

    `also` is called with every wake, too: it looks at the clock by itself.
    """

    def __init__(
        self,
        bus: Bus | None,
        names: StreamNames,
        hub: Hub,
        discovery: Discovery,
        limits: WatchLimits,
        also: Callable[[Sequence[WakeLike]], None] | None = None,
    ) -> None:
        self._bus = bus
        self._names = names
        self._hub = hub
        self._discovery = discovery
        self._limits = limits
        self._also = also
        self._now = asyncio.Event()
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None

    async def start(self) -> None:
        """Listen to the bus, now or whenever it comes up."""
        if self._bus is not None:
            self._forget = self._bus.on_state_change(self._on_bus)
            self._subscription = await subscribe_wakes(self._bus, self._names, self.wake)

    async def stop(self) -> None:
        """Listen no longer. Idempotent."""
        if self._forget is not None:
            self._forget()
            self._forget = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    def wake(self, hints: Sequence[WakeLike]) -> None:
        """Tasks have events."""
        metrics.wakes_received_total.inc(len(hints))
        self._hub.wake(hints)
        self._discovery.wake(hints)
        if self._also is not None:
            self._also(hints)

    async def run(self) -> None:
        """Sweep until cancelled: at intervals, and at once when the bus has come back."""
        while True:
            try:
                async with asyncio.timeout(self._interval()):
                    await self._now.wait()
            except TimeoutError:
                pass  # the interval has passed
            self._now.clear()
            self._hub.sweep()
            self._discovery.look()

    def _interval(self) -> float:
        connected = self._bus is not None and self._bus.connected
        return self._limits.sweep if connected else self._limits.sweep_without_bus

    def _on_bus(self, _connected: bool) -> None:
        """Up: wakes were lost while it was down. Down: the interval is another one now."""
        self._now.set()
