"""Progress, output and checkpoints of everything that runs here, on their way to Postgres.

Progress and output are gathered: at most ten writes a second and unit, one batch for all units a tick. Output waits
in memory, at most 1 MiB a unit; a handler that is faster waits too.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence

from headrace_core.db.errors import DataRejected
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.model import Lease, Report, UnitId, Wake
from headrace_core.tasks.renew import save_checkpoint
from headrace_core.tasks.report import report
from headrace_core.telemetry import logs, metrics

TICK_SECONDS = 0.1
MAX_PENDING_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 2048
MAX_BATCH = 200
RETRY_SECONDS = 0.5

log = logs.get(__name__)


class LeaseLost(Exception):
    """A checkpoint was refused: another attempt has the unit. The handler is being ended."""


class _Pending:
    """What one unit has reported and is not yet written."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.progress: tuple[float, str] | None = None
        self.output: deque[bytes] = deque()
        self.waiting_bytes = 0
        self.offset = 0
        self.last = "output"
        self.drained = asyncio.Event()
        self.in_flight = 0
        self.next_at = 0.0
        self.flushed: asyncio.Future[None] | None = None
        """Set while the unit waits for its end: then everything goes at once."""

    def take(self, now: float) -> list[Report]:
        """What is to be written now: one report a tick, or everything."""
        reports: list[Report] = []
        while (self.flushed is not None or now >= self.next_at) and (item := self.next_report()):
            reports.append(item)
            self.next_at = now + TICK_SECONDS
        self.in_flight += len(reports)
        return reports

    def wrote(self) -> None:
        """One of the reports that were taken has been dealt with."""
        self.in_flight -= 1
        self.tell_flushed()

    def tell_flushed(self) -> None:
        """Wake whoever waits for the end of the writing, if that is so."""
        if self.flushed is not None and not self.flushed.done() and self.empty and self.in_flight == 0:
            self.flushed.set_result(None)

    def next_report(self) -> Report | None:
        """The next write: progress and output by turns."""
        if self.progress is not None and (self.last == "output" or not self.output):
            (fraction, message), self.progress, self.last = self.progress, None, "progress"
            return Report(self.lease, "progress", fraction=fraction, text=message)
        if self.output:
            self.last = "output"
            return self._chunk()
        return None

    def _chunk(self) -> Report:
        pieces = [self.output.popleft()]
        while self.output and sum(map(len, pieces)) + len(self.output[0]) <= CHUNK_BYTES:
            pieces.append(self.output.popleft())
        text = b"".join(pieces)
        written = Report(self.lease, "output", text=text.decode(), byte_offset=self.offset)
        self.offset += len(text)
        self.waiting_bytes -= len(text)
        self.drained.set()
        return written

    def put_back(self, unwritten: Report) -> None:
        """Offer a report again whose writing failed. A repeated chunk has the same offset: readers join by it."""
        if unwritten.type == "progress":
            self.progress = self.progress or (unwritten.fraction, unwritten.text)
            return
        text = unwritten.text.encode()
        self.output.appendleft(text)
        self.offset -= len(text)
        self.waiting_bytes += len(text)

    @property
    def empty(self) -> bool:
        return self.progress is None and not self.output


class Reporter:
    """Gathers and writes the reports of all units. `on_lost` is told of a unit whose checkpoint was refused."""

    def __init__(
        self,
        database: Database,
        sharded: Sequence[str],
        on_wakes: Callable[[Sequence[Wake]], None],
        on_lost: Callable[[list[Lease]], None],
    ) -> None:
        self._database = database
        self._sharded = sharded
        self._on_wakes = on_wakes
        self._on_lost = on_lost
        self._units: dict[UnitId, _Pending] = {}
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()

    # -- what contexts call --------------------------------------------------------------------------------------------

    def progress(self, lease: Lease, fraction: float, message: str) -> None:
        """Note progress; only the latest is written."""
        number = float(fraction)
        clamped = 0.0 if math.isnan(number) else min(max(number, 0.0), 1.0)
        self._of(lease).progress = (clamped, _clean(message)[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore"))
        self._dirty.set()

    async def output(self, lease: Lease, text: str) -> None:
        """Note output, in pieces; waits while 1 MiB of the unit's output is not yet written."""
        for piece in pieces_of(_clean(text), CHUNK_BYTES):
            pending = self._of(lease)
            while pending.waiting_bytes + len(piece) > MAX_PENDING_BYTES and lease.unit_id in self._units:
                pending.drained.clear()
                await pending.drained.wait()
            pending.output.append(piece)
            pending.waiting_bytes += len(piece)
            self._dirty.set()

    async def checkpoint(self, lease: Lease, data: bytes) -> bool:
        """Store a checkpoint, however long Postgres is away; the wait ends with the unit.

        Raises:
            LeaseLost: the unit is somebody else's.
        """
        while True:
            try:
                held = await save_checkpoint(self._database, lease, data)
            except DatabaseUnavailable as error:
                log.warning("checkpoint not stored yet", action="checkpoint.retry", error=error.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not held:
                metrics.fenced_total.inc()
                self._on_lost([lease])
                raise LeaseLost(f"task {lease.unit_id.task_id}: the lease with epoch {lease.epoch} was lost")
            return True

    # -- what the consumer calls ---------------------------------------------------------------------------------------

    async def flush(self, lease: Lease) -> None:
        """Wait until what the unit has reported is written, so that its events come before its end; then forget it."""
        pending = self._units.get(lease.unit_id)
        if pending is None or pending.lease != lease:
            return
        pending.flushed = asyncio.get_running_loop().create_future()
        pending.tell_flushed()
        self._dirty.set()
        self._urgent.set()
        await pending.flushed
        self.forget(lease)

    def forget(self, lease: Lease) -> None:
        """Drop what the unit has reported: its lease is gone."""
        pending = self._units.get(lease.unit_id)
        if pending is not None and pending.lease == lease:
            del self._units[lease.unit_id]
            pending.drained.set()
            if pending.flushed is not None and not pending.flushed.done():
                pending.flushed.set_result(None)

    async def run(self) -> None:
        """Write a batch every tenth of a second while there is something, sooner for units that end. In background."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._urgent.clear()
            now = asyncio.get_running_loop().time()
            taken = [item for pending in list(self._units.values()) for item in pending.take(now)]
            for start in range(0, len(taken), MAX_BATCH):
                await self._write(taken[start : start + MAX_BATCH])
            if any(not pending.empty for pending in self._units.values()):
                self._dirty.set()
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await self._urgent.wait()
        except TimeoutError:
            return

    async def _write(self, reports: list[Report]) -> None:
        try:
            wakes = await report(self._database, reports, sharded=self._sharded)
        except DatabaseUnavailable as error:
            log.warning("reports not written yet", action="report.retry", reports=len(reports), error=error.message)
            self._put_back(reports)
            await asyncio.sleep(RETRY_SECONDS)
        except DataRejected as error:
            await self._write_apart(reports, error)
        else:
            metrics.events_written_total.inc(len(reports))
            self._on_wakes(wakes)
            self._note_written(reports)

    async def _write_apart(self, reports: list[Report], error: DataRejected) -> None:
        """One of them is bad: write each alone and drop that one, which cannot be stored anyhow."""
        if len(reports) > 1:
            for item in reports:
                await self._write([item])
            return
        lease = reports[0].lease
        log.error(
            "a report cannot be stored",
            action="report.rejected",
            task=str(lease.unit_id.task_id),
            unit=lease.unit_id.unit,
            epoch=lease.epoch,
            sqlstate=error.sqlstate,
        )
        self._note_written(reports)

    def _note_written(self, reports: list[Report]) -> None:
        for item in reports:
            if pending := self._known(item.lease):
                pending.wrote()

    def _put_back(self, reports: list[Report]) -> None:
        for item in reversed(reports):
            if pending := self._known(item.lease):
                pending.put_back(item)
                pending.in_flight -= 1
        self._dirty.set()

    def _known(self, lease: Lease) -> _Pending | None:
        pending = self._units.get(lease.unit_id)
        return pending if pending is not None and pending.lease == lease else None

    def _of(self, lease: Lease) -> _Pending:
        pending = self._units.get(lease.unit_id)
        if pending is None or pending.lease != lease:
            pending = self._units[lease.unit_id] = _Pending(lease)
        return pending


def _clean(text: str) -> bytes:
    """UTF-8 that Postgres can store: no NUL, no half surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace")


def pieces_of(text: bytes, size: int) -> list[bytes]:
    """`text` in pieces of at most `size` bytes, none of them ending within a character."""
    pieces: list[bytes] = []
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(text[start:end])
        start = end
    return pieces
