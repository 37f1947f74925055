"""What one client of an HTTP port may take: how many connections, how large a head, how long for a request and answer.

uvicorn ends a connection that is idle between two requests, and no other: one that sends a byte now and then, or reads
no answer, would stay for as long as it likes.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 1_000
"""Of a port. Whoever comes then takes the place of the one that has been sending its request for the longest."""
REQUEST_SECONDS = 10.0
"""For a whole request, from the connection or from its first byte on."""
ANSWER_SECONDS = 30.0
"""For the answer, until the client has taken it; more than any of ours takes to make."""
MAX_HEAD_BYTES = 16 * 1024
"""Of a request's line and headers, h11's own default."""


class BoundedHttp(H11Protocol):
    """uvicorn's protocol with a limit to each wait."""

    limit: asyncio.TimerHandle | None = None
    begun = 0.0

    @property
    def answering(self) -> bool:
        """A request is there, and its answer not yet sent."""
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        self.begun = self.loop.time()
        if len(self.connections) >= MAX_CONNECTIONS:
            self._make_room()
        super().connection_made(transport)
        self._limit(REQUEST_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._unlimit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A piece of a request, or all of one."""
        was_answering = self.answering
        super().data_received(data)
        if self.answering and not was_answering:
            self._limit(ANSWER_SECONDS)
        elif not self.answering and self.limit is None:
            self._limit(REQUEST_SECONDS)

    def on_response_complete(self) -> None:
        """Idle: from here uvicorn's own limit holds. A request that was sent ahead begins at once."""
        self._unlimit()
        super().on_response_complete()
        if self.answering:
            self._limit(ANSWER_SECONDS)
        elif self.transport.is_closing():
            self._limit(REQUEST_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        """Idle for too long. A socket with something to send never closes by itself where nobody reads."""
        super().timeout_keep_alive_handler()
        self._limit(REQUEST_SECONDS)

    def _make_room(self) -> None:
        # One that was told to go is there until the loop turns; many may come before that.
        staying: list[Any] = [found for found in self.connections if not found.transport.is_closing()]
        if len(staying) < MAX_CONNECTIONS:
            return
        waiting = [found for found in staying if not found.answering]
        # All of them answering: then the oldest of these, which is the likeliest to be one that does not read.
        min(waiting or staying, key=lambda found: found.begun).transport.abort()

    def _limit(self, seconds: float) -> None:
        self._unlimit()
        self.limit = self.loop.call_later(seconds, self._expire)

    def _unlimit(self) -> None:
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None

    def _expire(self) -> None:
        self.limit = None
        self.transport.abort()
