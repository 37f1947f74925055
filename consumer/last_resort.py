"""SIGTERM while a handler blocks the event loop: nothing that runs on the loop can answer it, so a thread does.

An async handler that computes, or calls something that blocks, keeps the whole consumer from turning; it cannot be
interrupted. If that lasts beyond the time that handlers have to end, this thread hands back everything that the
consumer has a lease of and ends the process. Code that never gives up the interpreter's lock stops this thread, too,
and the renewal of the leases: then a takeover follows, and the process ends by SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from consumer.drain import finish_seconds
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.settings.environment import ServiceSettings
from headrace_core.tasks.kinds import remove_consumer
from headrace_core.tasks.model import ClaimedUnit, Holder, Reschedule, Settlement
from headrace_core.tasks.outcome import Interrupted, interrupt
from headrace_core.tasks.settle import settle
from headrace_core.telemetry import logs

BLOCKED_SECONDS = 1.0
"""How long the loop may be silent, beyond the time that its handlers have, until it counts as blocked."""
LOOK_SECONDS = 0.2
RETRY_SECONDS = 0.2
STATEMENT_SECONDS = 5.0
"""What one more try may take."""
GONE_SECONDS = 0.3
"""From the hand-back to the end of the process, and a little more."""
CLEAN, FAILED = 0, 1
CAUSE = "the consumer is stopping, and a handler blocks its event loop"

log = logs.get(__name__)


class LastResort:
    """Made and installed on the running loop. `held` is called from another thread."""

    def __init__(self, settings: ServiceSettings, holder: Holder, held: Callable[[], list[ClaimedUnit]]) -> None:
        self._url = settings.database_url
        self._grace = settings.grace_seconds
        self._finish = finish_seconds(settings.finish_seconds, settings.grace_seconds)
        self._holder = holder
        self._held = held
        self._loop = asyncio.get_running_loop()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="headrace-last-resort", daemon=True)

    def install(self) -> None:
        """Begin at SIGTERM, besides whoever handles that already. A process that handles it nowhere is not ours."""
        handled = signal.getsignal(signal.SIGTERM)
        if not callable(handled) or threading.current_thread() is not threading.main_thread():
            return

        def on_signal(number: int, frame: FrameType | None) -> Any:
            if self._thread.ident is None:
                self._thread.start()
            return handled(number, frame)

        signal.signal(signal.SIGTERM, on_signal)

    def disarm(self) -> None:
        """The loop has dealt with everything. Idempotent."""
        self._over.set()

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        asked = time.monotonic()
        until = asked + self._finish + BLOCKED_SECONDS
        while self._answers(max(until - time.monotonic(), BLOCKED_SECONDS)):
            self._over.wait(LOOK_SECONDS)
        if self._over.is_set():
            return
        log.critical("a handler blocks the event loop: handing back without it", action="drain.blocked")
        try:
            code = asyncio.run(self._hand_back(asked + self._grace))
        except Exception:
            log.critical("the hand-back failed; the leases run out", action="drain.failed", exc_info=True)
            code = FAILED
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _answers(self, within: float) -> bool:
        """Whether the loop turns, and there is still anything to do."""
        answered = threading.Event()
        if self._over.is_set() or self._loop.is_closed():
            return False
        self._loop.call_soon_threadsafe(answered.set)
        return answered.wait(within)

    async def _hand_back(self, end: float) -> int:
        """Hand back everything, trying until `end`; the exit code."""
        database = Database(self._url, max_size=1)
        await database.open()
        settlements = [_handed_back(unit) for unit in self._held()]
        while True:
            try:
                await remove_consumer(database, self._holder.id)
                await settle(database, settlements, sharded=self._holder.sharded)
            except DatabaseUnavailable as error:
                log.warning("not handed back yet", action="drain.retry", error=error.message)
                if time.monotonic() + STATEMENT_SECONDS > end:
                    return FAILED  # the leases run out, and a takeover follows
                await asyncio.sleep(RETRY_SECONDS)
            else:
                log.info("handed back", action="drain.handed_back", units=len(settlements))
                return CLEAN


def _handed_back(unit: ClaimedUnit) -> Settlement:
    settlement = interrupt(unit.lease, unit.interruptions, Interrupted(CAUSE))
    # Nobody here can publish it; what is due later counts as never offered, and the relay takes it then. Not before
    # this process has gone: the broker would deliver to its pull requests.
    return settlement._replace(due_in=GONE_SECONDS) if isinstance(settlement, Reschedule) else settlement
