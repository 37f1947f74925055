"""What a consumer says to the broker, in one place: it is there as a whole, or, with `broker = "none"`, not at all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from consumer.dead_letters import DeadLetterFeed, MalformedMessages
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.wakes import WakePublisher
from headrace_core.db.pool import Database
from headrace_core.tasks.model import Publication, Wake
from headrace_core.telemetry import metrics, tracing
from headrace_core.telemetry.publications import note_publications


class BrokerSide:
    """The publishers of one consumer over one connection."""

    def __init__(self, bus: Bus, names: StreamNames, database: Database) -> None:
        self.bus = bus
        self.names = names
        self.publisher = Publisher(bus)
        self.dead_letters = DeadLetterFeed(database, bus, self.publisher, names)
        self.malformed = MalformedMessages(database, bus, names, self.dead_letters)
        self._wakes = WakePublisher(bus, names)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Publish, once. Never raises for the broker; what is not stored, and soon claimed, is left to the relay."""
        messages = [
            OutgoingMessage(self.names.task_subject(item.subject_suffix), item.body, item.message_id)
            for item in publications
        ]
        began = time.time()
        results = await self.publisher.publish(messages)
        if tracing.spans is not None:
            note_publications(tracing.spans, publications, results, began)
        metrics.publish_batch_size.observe(len(publications))
        stored = [item for item, result in zip(publications, results, strict=True) if result.accepted]
        for level, number in Counter(item.subject_suffix.rpartition(".")[2] for item in stored).items():
            metrics.published_total.labels(level).inc(number)

    async def wake(self, wakes: Sequence[Wake]) -> None:
        """Send live hints: the latest number of each task is enough."""
        latest = {wake.task_id: wake for wake in wakes}
        dropped = self._wakes.dropped
        await self._wakes.publish(list(latest.values()))
        metrics.wakes_dropped_total.inc(self._wakes.dropped - dropped)
        metrics.wakes_published_total.inc(len(latest) - (self._wakes.dropped - dropped))

    async def close(self) -> None:
        """Stop listening for answers."""
        await self.publisher.close()
