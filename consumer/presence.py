"""What this consumer says about itself in Postgres: its kinds, that it lives, how its inference back end is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from consumer.registry import Registry
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.kinds import ConsumerRow, register_kinds, remove_consumer, upsert_consumer, write_inference
from headrace_core.tasks.model import Holder
from headrace_core.telemetry import logs

BEAT_SECONDS = 5.0
REGISTER_SECONDS = 3600.0
INFERENCE_SECONDS = 20.0
INFERENCE_KIND = "ai.analyze"
FAREWELL_SECONDS = 2.0

log = logs.get(__name__)


class Presence:
    """Owns this consumer's row and registrations. `beat` and `watch_inference` are background tasks."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        holder: Holder,
        running: Callable[[], int],
        mode: Callable[[], str],
    ) -> None:
        self._database = database
        self._registry = registry
        self._holder = holder
        self._running = running
        self._mode = mode
        self._draining = False
        self._registered_at = float("-inf")
        self.problem = "the kinds are not registered yet"

    async def announce(self) -> None:
        """Register the kinds, at the start and every hour, and give a sign of life.

        Raises:
            DatabaseUnavailable: try again.
        """
        now = asyncio.get_running_loop().time()
        if now - self._registered_at > REGISTER_SECONDS:
            await register_kinds(self._database, [handler.kind_row for handler in self._registry.handlers.values()])
            self._registered_at = now
        await upsert_consumer(self._database, self._row())
        self.problem = ""

    async def beat(self) -> None:
        """Give a sign of life every 5 s. An outage of Postgres shows in `problem`."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self.announce()
            except DatabaseUnavailable as error:
                self.problem = error.message

    async def draining(self) -> None:
        """Say that this consumer is stopping, before it does anything else about it. Tries for 2 s."""
        self._draining = True
        await self._try(lambda: upsert_consumer(self._database, self._row()), "draining")

    async def leave(self) -> None:
        """Say that this consumer has ended. Tries for 2 s."""
        await self._try(lambda: remove_consumer(self._database, self._holder.id), "leaving")

    async def watch_inference(self) -> None:
        """Note every 20 s how the inference back end is, where ai.analyze runs here."""
        if INFERENCE_KIND not in self._registry.handlers:
            return
        from consumer.builtin.ai import inference_health  # noqa: PLC0415 - only where the kind is registered

        while True:
            health = await inference_health()
            try:
                await write_inference(self._database, health)
            except DatabaseUnavailable as error:
                log.info("inference health not noted", action="inference.unnoted", error=error.message)
            await asyncio.sleep(INFERENCE_SECONDS)

    def _row(self) -> ConsumerRow:
        return ConsumerRow(
            self._holder.id,
            self._holder.worker,
            list(self._holder.kinds),
            sorted(self._registry.queues),
            self._draining,
            self._running(),
            self._mode(),
        )

    async def _try(self, say: Callable[[], object], what: str) -> None:
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await say()  # type: ignore[misc]
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("not said in Postgres", action="presence.unsaid", what=what, error=str(error))
