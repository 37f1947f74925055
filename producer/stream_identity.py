"""Which incarnation of a stream this process talks to, as far as it knows."""

from __future__ import annotations

from headrace_core.bus.connection import Bus
from headrace_core.bus.topology import stream_info
from headrace_core.db.pool import Database
from headrace_core.tasks.streams import incarnation_of
from headrace_core.telemetry import logs

_log = logs.get("headrace.producer.streams")


class StreamIdentity:
    """Looks at one stream, now and then, and numbers its incarnations through Postgres."""

    def __init__(self, db: Database, bus: Bus, stream: str) -> None:
        self._db = db
        self._bus = bus
        self._stream = stream
        self.incarnation: int | None = None
        """As of the last look that succeeded; None before."""
        self.created = ""
        """The stream's creation time as the server tells it, as of that look."""

    async def look(self) -> int:
        """Look now; the incarnation. One that was seen before and after an answer is the one that answered.

        Raises:
            BusError: the broker cannot say. StreamMissing: there is none.
            DatabaseUnavailable: Postgres cannot say.
        """
        created, incarnation = await incarnation_of(self._db, self._stream, await self._look(), self._look)
        if self.incarnation not in (None, incarnation):
            _log.warning("the stream is another one", action="stream_replaced", stream=self._stream, created=created)
        self.created, self.incarnation = created, incarnation
        return incarnation

    async def _look(self) -> str:
        return str((await stream_info(self._bus, self._stream))["created"])
