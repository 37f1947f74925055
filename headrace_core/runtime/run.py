"""The life of a service's process, from the first variable read to the exit code.

Exit codes: 0 a clean stop after SIGTERM or SIGINT; 1 a failure (also a second signal, which stops at once);
2 settings that cannot work, said in one sentence on standard error.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from headrace_core.runtime import garbage
from headrace_core.runtime.http import HttpServer
from headrace_core.runtime.ops import ops_app
from headrace_core.runtime.ready import remove_ready_file, write_ready_file
from headrace_core.runtime.service import Service
from headrace_core.runtime.shadow import check_names
from headrace_core.settings.environment import ServiceSettings, load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs, metrics, tracing
from headrace_core.telemetry.failures import log_uncaught
from headrace_core.tls.exposure import check_exposure

START_SECONDS = 60.0
STOP_SECONDS = 10.0
# A thread or a coroutine that will not end, left behind by a handler, would keep the interpreter from ending for ever.
LEAVE_SECONDS = 1.0
# A drain uses its whole grace period where it must; the limit around it only catches one that forgot to look.
DRAIN_MARGIN_SECONDS = 2.0

CLEAN, FAILED, BAD_SETTINGS = 0, 1, 2

log = logs.get(__name__)

Build = Callable[[ServiceSettings], Service]


def run(name: str, build: Build, *, default_listen: str, default_ops_listen: str = "127.0.0.1:0") -> int:
    """Run the service that `build` makes of the settings until a signal or a fatal failure; returns the exit code.

    `build` is called on the running loop and may raise SettingsError, as may the service's start. The process is ended
    with that code a second later if it has not ended by itself.
    """
    try:
        check_names()
        settings = load_settings(os.environ, default_listen=default_listen, default_ops_listen=default_ops_listen)
        logs.configure(settings.log_level, settings.log_format, name)
        log_uncaught(log)
        check_exposure(name, settings)
        tracing.start(name, os.environ)
        return uvloop.run(_Process(name, build, settings).live())
    except SettingsError as error:
        sys.stderr.write(f"headrace {name}: {error.message}\n")
        return BAD_SETTINGS


def _leave(code: int) -> None:
    time.sleep(LEAVE_SECONDS)
    log.warning("something that ran here does not end; leaving without it", action="service.left", code=code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Process:
    """One run. Every step has a limit; what was started is stopped in the reverse order, however far the start came."""

    def __init__(self, name: str, build: Build, settings: ServiceSettings) -> None:
        self._name = name
        self._build = build
        self._settings = settings
        self._stop_asked = asyncio.Event()
        self._serving = False

    async def live(self) -> int:
        self._listen_to_signals()
        metrics.set_service(self._name)
        service = self._build(self._settings)
        ops = HttpServer(ops_app(lambda: self._problems(service)), self._settings.ops_listen, name="ops")
        code = FAILED
        try:
            ops_address = await ops.start()
            if await self._start(service):
                garbage.settle()
                self._announce(service, ops_address)
                code = await self._wait(service, ops)
                self._serving = False
                limit = self._settings.grace_seconds + DRAIN_MARGIN_SECONDS
                grace_ends = time.monotonic() + self._settings.grace_seconds
                if not await self._within(service.drain(), limit, "drain"):
                    code = FAILED
                await tracing.stop(min(max(grace_ends - time.monotonic(), 0.0), tracing.FLUSH_SECONDS))
            elif self._stop_asked.is_set():
                code = CLEAN
        finally:
            if not await self._within(service.stop(), STOP_SECONDS, "stop"):
                code = FAILED
            await ops.stop()
            self._retract()
        log.info("stopped", action="service.stopped", code=code)
        threading.Thread(target=_leave, args=(code,), name="leave", daemon=True).start()
        return code

    async def _start(self, service: Service) -> bool:
        """True once it serves; False if it failed or a signal came first. SettingsError goes through."""
        start = asyncio.ensure_future(self._within(service.start(), START_SECONDS, "start"))
        asked = asyncio.ensure_future(self._stop_asked.wait())
        await asyncio.wait({start, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if start.done():
            return start.result()
        start.cancel()
        # The start may take a while to give up what it holds, and it may never do.
        await asyncio.wait({start}, timeout=STOP_SECONDS)
        return False

    async def _wait(self, service: Service, ops: HttpServer) -> int:
        """Until a signal (0) or the first fatal failure (1)."""
        asked = asyncio.create_task(self._stop_asked.wait(), name="signal")
        failed = asyncio.create_task(service.supervisor.wait_failed(), name="background failure")
        closed = asyncio.create_task(ops.serve_until_closed(), name="ops server")
        waiting: set[asyncio.Task[Any]] = {asked, failed, closed}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if closed.done() and (error := closed.exception()):
                log.critical("the ops server has ended", action="service.failed", exc_info=error)
            if failed.done():
                log.critical("a background task failed for good", action="service.failed", name=failed.result().name)
            return CLEAN if asked.done() and not failed.done() else FAILED
        finally:
            for task in waiting:
                task.cancel()

    async def _within(self, step: Coroutine[Any, Any, None], limit: float, what: str) -> bool:
        """True if the step ended well within `limit` seconds; otherwise the log says why not."""
        try:
            async with asyncio.timeout(limit):
                await step
        except SettingsError:
            raise
        except TimeoutError as error:
            log.critical(f"the {what} took longer than {limit:g} s", action=f"service.{what}_failed", exc_info=error)
        except Exception:
            log.critical(f"the {what} failed", action=f"service.{what}_failed", exc_info=True)
        else:
            return True
        return False

    def _problems(self, service: Service) -> list[str]:
        if self._stop_asked.is_set():
            return ["the service is stopping"]
        if not self._serving:
            return ["the service is starting"]
        return service.problems()

    def _announce(self, service: Service, ops_address: str) -> None:
        self._serving = True
        log.info(
            "serving",
            action="service.serving",
            grpc=service.grpc_address,
            ops=ops_address,
            http=service.http_address,
            database=self._settings.database_url,
            nats=self._settings.nats_url if self._settings.broker == "nats" else None,
            config=str(self._settings.topology.source or "defaults"),
        )
        if self._settings.ready_file:
            write_ready_file(
                self._settings.ready_file,
                grpc=service.grpc_address,
                ops=ops_address,
                http=service.http_address,
            )

    def _retract(self) -> None:
        if self._settings.ready_file:
            remove_ready_file(self._settings.ready_file)

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop_asked.is_set():
            log.critical("second signal: stopping at once", action="service.killed", signal=number.name)
            # Nothing that could wait: a stuck stop is why somebody has sent the second signal.
            os._exit(FAILED)
        log.info("stopping", action="service.stopping", signal=number.name)
        self._stop_asked.set()
