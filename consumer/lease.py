"""Keeping the leases of everything that runs here, from outside the handlers (rule 7).

The renewals have a thread, an event loop and a database connection of their own: an async handler that blocks the
main loop for a minute must not lose its lease, and a burst of settlements must not keep a renewal waiting for a
connection. The price is one more connection for each consumer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence

from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.model import ClaimedUnit, Lease, UnitId
from headrace_core.tasks.renew import clear_suspicion, renew
from headrace_core.telemetry import logs, metrics

RENEWALS_PER_LEASE = 4
LONGEST_RENEWAL_SECONDS = 2.0
BATCH = 1000
MAX_CLEARED = 10_000
JOIN_SECONDS = 5.0

log = logs.get(__name__)


class LeaseKeeper:
    """Renews the leases that it holds. `on_lost` is called on the loop that made it, with leases found lost."""

    def __init__(self, database_url: str, lease: float, on_lost: Callable[[list[Lease]], None]) -> None:
        """`lease` is the shortest lease of the queues, in seconds."""
        self._url = database_url
        self._interval = lease / RENEWALS_PER_LEASE
        self._on_lost = on_lost
        self._home = asyncio.get_running_loop()
        self._held: dict[UnitId, ClaimedUnit] = {}
        self._cleared: list[Lease] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._stop_here: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._ended = asyncio.Event()

    def hold(self, unit: ClaimedUnit) -> None:
        """Renew the lease of this one from now on."""
        with self._lock:
            self._held[unit.lease.unit_id] = unit

    def release(self, leases: Iterable[Lease]) -> None:
        """Renew them no more. Idempotent; another lease of the same unit stays."""
        with self._lock:
            for lease in leases:
                if self._holds(lease):
                    del self._held[lease.unit_id]

    def held(self) -> list[ClaimedUnit]:
        """Whose leases are renewed. May be called from any thread."""
        with self._lock:
            return list(self._held.values())

    async def watch(self) -> None:
        """Wait for the thread to end; raises what ended it before its time: fatal, for all leases run out."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def start(self) -> None:
        """Start the thread. Idempotent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="headrace-leases", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """End the thread, within a few seconds. Idempotent, legal before start."""
        self._stop.set()
        if self._stop_here is not None:
            self._stop_here()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    # -- in the thread -------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            asyncio.run(self._keep())
        except Exception as error:
            self._failure = error
            log.critical("the renewal of leases has ended", action="lease.failed", exc_info=error)
        finally:
            if not self._home.is_closed():
                self._home.call_soon_threadsafe(self._ended.set)

    async def _keep(self) -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop_here = _setter(loop, stopped)
        database = Database(self._url, max_size=1)
        await database.open()
        try:
            while not self._stop.is_set():
                began = loop.time()
                await self._renew_all(database)
                await _wait(stopped, self._interval - (loop.time() - began))
        finally:
            await database.close()

    async def _renew_all(self, database: Database) -> None:
        leases = [unit.lease for unit in self.held()]
        limit = min(self._interval, LONGEST_RENEWAL_SECONDS)
        try:
            for start in range(0, len(leases), BATCH):
                part = leases[start : start + BATCH]
                held = await renew(database, part, timeout=limit)
                self._report_lost([lease for lease in part if lease.unit_id not in held])
            await self._clear_suspicion(database, limit)
        except DatabaseUnavailable as error:
            # Nothing is lost by that: whoever takes over must have seen the lease unchanged in working rounds.
            log.warning("leases not renewed", action="lease.not_renewed", leases=len(leases), error=error.message)

    def _report_lost(self, leases: Sequence[Lease]) -> None:
        """Those that were released meanwhile are not lost but settled."""
        with self._lock:
            units = [self._held.pop(lease.unit_id) for lease in leases if self._holds(lease)]
        if units:
            metrics.renewals_lost_total.inc(len(units))
            self._home.call_soon_threadsafe(self._on_lost, [unit.lease for unit in units])
        waiting = [unit.lease for unit in units if not unit.suspect]
        self._cleared = (self._cleared + waiting)[-MAX_CLEARED:]

    async def _clear_suspicion(self, database: Database, limit: float) -> None:
        """We live: no unit that was taken from us has killed us, so none needs to start alone for that (rule 9)."""
        if self._cleared:
            await clear_suspicion(database, self._cleared, timeout=limit)
            self._cleared = []

    def _holds(self, lease: Lease) -> bool:
        unit = self._held.get(lease.unit_id)
        return unit is not None and unit.lease == lease


def _setter(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    def set_event() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event.set)

    return set_event


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0.01)):
            await event.wait()
    except TimeoutError:
        return
