"""grpc.health.v1 of our own, which gives the answer of /readyz.

The library's Watch never ends, so a drain with a watcher would take all its grace; and it must be told what we can ask.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

SERVING: int = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
# How often a watch looks for problems: nobody tells of them. A look takes microseconds.
LOOK_SECONDS = 1.0


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """One answer for the whole server and each of its services: they share a process and its fate.

    SERVING while it is set so and `problems` finds none: the same list decides about /readyz.
    """

    def __init__(self, problems: Callable[[], list[str]]) -> None:
        self._problems = problems
        self._services = {""}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def know(self, service: str) -> None:
        """Answer for this service too."""
        self._services.add(service)

    def set_serving(self, serving: bool) -> None:
        """Tell everybody who asks, and those who watch. Not serving at first. Problems come on top."""
        self._serving = serving
        self._tell()

    def close(self) -> None:
        """End every watch, after the last status has been sent."""
        self._closed = True
        self._tell()

    async def Check(  # noqa: N802 - the name in the proto
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that this server does not have."""
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the name in the proto
        self,
        request: health_pb2.HealthCheckRequest,
        _context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes, until the client leaves or the server stops."""
        sent: int | None = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            elif self._closed:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await changed.wait()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return SERVICE_UNKNOWN
        return SERVING if self._serving and not self._problems() else NOT_SERVING

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
