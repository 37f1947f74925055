"""An ASGI application on a port of its own, inside a process whose signals and loop belong to somebody else."""

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any

import uvicorn

from headrace_core.runtime.http_bounds import MAX_HEAD_BYTES, BoundedHttp
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs
from headrace_core.tls.certificates import Certificates
from headrace_core.tls.naming import NamingProtocol

START_SECONDS = 10.0
BACKLOG = 1024
TICKS_PER_SECOND = 10
"""Of uvicorn's counter."""

log = logs.get(__name__)


class HttpServer:
    """Serves `app` on `listen` (host:port, port 0 takes a free one), with `certificates` over TLS.

    `request.state.certificate_names` has the names in the client's certificate then, if one was required.
    """

    def __init__(self, app: Any, listen: str, *, name: str = "http", certificates: Certificates | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=BoundedHttp if certificates is None else NamingProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        if certificates is not None:
            config.load()
            config.ssl = certificates.http_context()
        self._listen = listen
        self._name = name
        self._server = _Embedded(config)
        self._task: asyncio.Task[None] | None = None
        self._bound: socket.socket | None = None
        self._stopping = False

    async def start(self) -> str:
        """Bind and serve; returns the bound host:port. Raises SettingsError if the address cannot be bound."""
        bound = self._bound = bind(self._listen)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name=f"{self._name} server")
        started = asyncio.create_task(self._server.ready.wait(), name=f"{self._name} start")
        try:
            await asyncio.wait({self._task, started}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            started.cancel()
        if not self._server.ready.is_set():
            await self.stop()
            raise RuntimeError(f"the {self._name} server on {self._listen} did not start")
        host, port = bound.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def serve_until_closed(self) -> None:
        """Wait, without a limit, until the server ends; raises if it does so without `stop`. Supervise with "stop"."""
        assert self._task is not None, "start comes first"
        # Not awaited: who cancels this wait does not mean the server, nor is the server's cancellation ours.
        await asyncio.wait({self._task})
        if self._stopping:
            return
        error = None if self._task.cancelled() else self._task.exception()
        raise RuntimeError(f"the {self._name} server has ended by itself") from error

    async def stop(self, within: float = 3.0) -> None:
        """Close the port; requests in progress get one second, then are cut. Idempotent, legal before start."""
        task = self._task
        if task is None or self._stopping:
            return
        self._stopping = True
        self._server.leave()
        _done, pending = await asyncio.wait({task}, timeout=within)
        if pending:
            log.error("the HTTP server did not end in time", action="http.stuck", name=self._name, within=within)
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
        elif not task.cancelled() and (error := task.exception()):
            log.error("the HTTP server had failed", action="http.failed", name=self._name, exc_info=error)
        self._release()

    def _release(self) -> None:
        """Close what uvicorn closes at an orderly end only: the listeners on the loop, then the port."""
        for listener in getattr(self._server, "servers", ()):
            listener.close()
        if self._bound is not None:
            self._bound.close()


def bind(listen: str) -> socket.socket:
    """A bound TCP socket. Raises SettingsError naming the address and the system's reason."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
    except OSError as error:
        bound.close()
        raise SettingsError(f"cannot listen on {listen}: {error.strerror or error}") from error
    bound.setblocking(False)
    return bound


class _Embedded(uvicorn.Server):
    """uvicorn without its signal handlers, telling when it serves, and asleep between requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """End soon."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """As uvicorn's, which looks ten times a second whether it should exit: in three idle services a third of their
        CPU. What it does once in ten such looks, the headers with the date, is done once a second.
        """
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + TICKS_PER_SECOND) % 864_000
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()
