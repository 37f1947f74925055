"""Who may still begin a call: counts what is running, bounds it, and closes the door for the drain."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from headrace_core.errors import Draining, ServerLimit
from headrace_core.rpc.answers import Unsent

# A bound, not a target: 10,000 watches and a burst of submits fit below it.
MAX_CALLS = 20_000
# Of one connection: half of what a server takes, so that one client cannot shut out all others.
MAX_STREAMS_PER_CLIENT = 10_000


class Admission:
    """The calls in progress of one server. Belongs to one event loop."""

    def __init__(self, limit: int = MAX_CALLS, streams_per_client: int = MAX_STREAMS_PER_CLIENT) -> None:
        self._limit = limit
        self._streams_per_client = streams_per_client
        self._streams: Counter[str] = Counter()
        self._running = 0
        self.unsent = Unsent()
        self.draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Calls that have entered and not left."""
        return self._running

    def enter(self) -> None:
        """Count a call in. Raises Draining or ServerLimit; then there is nothing to leave."""
        if self.draining.is_set():
            raise Draining("this server is stopping; connect again and repeat the call, or resume the watch")
        if self._running >= self._limit:
            raise ServerLimit(
                f"this server has {self._limit} calls in progress, which is its limit",
                metadata={"limit": str(self._limit)},
            )
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """Count a call out."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    @contextmanager
    def stream_of(self, client: str) -> Iterator[None]:
        """Count a stream of `client` (an address and port: one connection) while it is open. Raises ServerLimit."""
        if self._streams[client] >= self._streams_per_client:
            raise ServerLimit(
                f"this connection has {self._streams_per_client} streams open, which is the limit for one;"
                " watch many tasks on one stream (WatchTasks)",
                metadata={"limit": str(self._streams_per_client)},
            )
        self._streams[client] += 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]

    async def wait_idle(self, within: float) -> bool:
        """True as soon as nothing runs; False after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
