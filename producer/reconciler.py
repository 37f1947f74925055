"""The reconciler: holds Postgres against the stream of tasks, in rounds, in every replica at once.

What waits and has lost its message is published again. What the stream still has and will never deliver is removed.
With nothing lost a round is three requests to the broker and one query that reads a handful of rows.
"""

from __future__ import annotations

import asyncio

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import BusError, StreamMissing
from headrace_core.bus.task_stream import DurableView, TaskStreamView, look_at_tasks, next_message
from headrace_core.db.pool import Database
from headrace_core.tasks.reconciliation import Doubtful, Passed, publish_again, read_doubtful
from headrace_core.telemetry import logs, metrics
from producer.dead_messages import DeadMessages
from producer.losses import LossWatch
from producer.publishing import TaskPublisher
from producer.queue_loads import QueueLoads
from producer.stream_identity import StreamIdentity

RECONCILE_SECONDS = 1.0
# Of each subject, in one reading. A round goes on until nothing certain is left.
BATCH = 1000
# A round repairs at most so many batches, so that it ends: the next one goes on.
MAX_BATCHES = 50
MAX_REMOVED = 500

_log = logs.get("headrace.producer.reconciler")


class Reconciler:
    """`reconcile` is a chore of the relay."""

    def __init__(
        self,
        db: Database,
        bus: Bus,
        names: StreamNames,
        publisher: TaskPublisher,
        loads: QueueLoads,
        dead: DeadMessages,
        identity: StreamIdentity,
    ) -> None:
        self._db = db
        self._bus = bus
        self._names = names
        self._publisher = publisher
        self._loads = loads
        self._dead = dead
        self._identity = identity
        self._losses = LossWatch()
        self._surplus_before = 0

    async def reconcile(self) -> None:
        """One round. A broker that is away is left alone: what waits there is Postgres' to hand out (promise G7)."""
        if not self._bus.jetstream:
            return
        try:
            view = await look_at_tasks(self._bus, self._names)
            incarnation = await self._identity.look()
            if view.created != self._identity.created:
                return  # replaced between the two looks: the next round sees the new one
            await self._repair(view, incarnation)
            await self._remove_surplus(view)
        except StreamMissing:
            return  # said by the consumers and by the system status, each with what to do
        except BusError as error:
            _log.info("the round waits for the broker", action="reconciler_waits", error=error.message)

    async def _repair(self, view: TaskStreamView, incarnation: int) -> None:
        gone = {(durable.queue, durable.level): max(durable.floor, view.first - 1) for durable in view.durables}
        passed = [
            Passed(durable.queue, durable.level, max(durable.delivered, gone[durable.queue, durable.level]))
            for durable in view.durables
        ]
        for _ in range(MAX_BATCHES):
            doubtful = await read_doubtful(self._db, incarnation, passed, BATCH)
            now = asyncio.get_running_loop().time()
            lost = self._losses.see(doubtful, incarnation, gone, now, self._loads.lease)
            if not lost or not await self._publish_again(lost):
                return

    async def _publish_again(self, lost: list[Doubtful]) -> int:
        count = 0
        for start in range(0, len(lost), BATCH):
            publications = await publish_again(self._db, lost[start : start + BATCH])
            self._publisher.offer(publications)
            count += len(publications)
        metrics.republished_total.inc(count)
        if count:
            _log.warning("messages were lost and are published again", action="republished", count=count)
        return count

    async def _remove_surplus(self, view: TaskStreamView) -> None:
        """Look for dead messages once the stream has held more than its durables account for in two rounds.

        In one round alone it may be a matter of the moments at which the figures were taken.
        """
        before, self._surplus_before = self._surplus_before, view.surplus
        if min(before, view.surplus) <= 0:
            return
        for durable in view.durables:
            await self._remove_dead(durable)

    async def _remove_dead(self, durable: DurableView) -> None:
        subject = self._names.task_subject(f"{durable.queue}.{durable.level}")
        sequence = 0
        for _ in range(MAX_REMOVED):
            message = await next_message(self._bus, self._names.tasks, subject, sequence + 1)
            if message is None or message.sequence > durable.floor:
                return
            await self._dead.bury(message)
            sequence = message.sequence
