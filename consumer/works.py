"""Everything of a consumer that exists once its queues are known: which part is made of which."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence

from consumer.announcing import Announcer
from consumer.attempt import Attempt
from consumer.broker import BrokerSide
from consumer.execution.executions import Executions
from consumer.execution.processes import WorkerSettings
from consumer.intake.levels import Levels
from consumer.intake.limits import slots_of
from consumer.intake.mode import ModeWatch
from consumer.intake.queue import QueueIntake
from consumer.lease import LeaseKeeper
from consumer.presence import Presence
from consumer.registry import Registry
from consumer.reporting import Reporter
from consumer.settling import Settler
from consumer.unit import Units
from headrace_core.bus.connection import Bus
from headrace_core.bus.control import subscribe_cancel
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.puller import in_progress
from headrace_core.bus.subscription import Subscription
from headrace_core.db.pool import Database
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.model import ClaimedUnit, Holder, Lease, Settled
from headrace_core.telemetry import logs

BEATS_PER_ACK_WAIT = 2

log = logs.get(__name__)


class Works:
    """The working parts. `start`, then `announcer`, `units`, `presence` and `intakes` are drained, then `stop`."""

    def __init__(
        self,
        settings: ServiceSettings,
        queues: Mapping[str, QueueSettings],
        registry: Registry,
        holder: Holder,
        database: Database,
        bus: Bus | None,
        supervisor: Supervisor,
    ) -> None:
        names = StreamNames(settings.stream_prefix, settings.subject_prefix)
        self._queues = queues
        self._database = database
        self._supervisor = supervisor
        self._broker = BrokerSide(bus, names, database) if bus is not None else None
        self.announcer = Announcer(self._broker)
        self._leases = LeaseKeeper(settings.database_url, min(queue.lease for queue in queues.values()), self._lost)
        self._reporter = Reporter(database, holder.sharded, self.announcer.wakes, self._lost)
        self._settler = Settler(database, holder.sharded, self.announcer.settled, self._answered)
        self._executions = self._make_executions(settings, registry)
        self.units = Units(database, registry, queues, self._executions, self._leases, self._reporter, self._settler)
        declaration = declared(queues.values(), names) if settings.create_queues else None
        self._mode = ModeWatch(bus, names, list(queues), holder.id, declaration, self._wake_intakes)
        self.presence = Presence(database, registry, holder, lambda: self.units.running, lambda: self._mode.mode)
        self.intakes = [self._intake(queue, registry, database, holder) for queue in queues.values()]
        self._cancels: Subscription | None = None

    def problems(self) -> list[str]:
        """Why no work is taken; empty if it is."""
        found = [*(intake.problem() for intake in self.intakes), self.presence.problem, self._database.shortage]
        return [problem for problem in found if problem]

    def held(self) -> list[ClaimedUnit]:
        """What this consumer has a lease of. May be called from any thread."""
        return self._leases.held()

    async def start(self) -> None:
        """Begin to take work."""
        self._leases.start()
        if self._broker is not None:
            await self._mode.look(self._broker.bus)
            self._cancels = await subscribe_cancel(self._broker.bus, self._broker.names, self.units.cancelled)
            self._supervisor.spawn("malformed", self._broker.malformed.run)
            self._supervisor.spawn("held-messages", self._hold_messages)
        self._supervisor.spawn("announcer", self.announcer.run)
        self._supervisor.spawn("reporter", self._reporter.run)
        self._supervisor.spawn("settler", self._settler.run)
        self._supervisor.spawn("mode", self._mode.run)
        self._supervisor.spawn("presence", self.presence.beat)
        self._supervisor.spawn("inference", self.presence.watch_inference)
        self._supervisor.spawn("stuck-handlers", self.units.watch_stuck, on_failure="stop")
        self._supervisor.spawn("leases", self._leases.watch, on_failure="stop")
        for intake in self.intakes:
            self._supervisor.spawn(f"intake-{intake.queue.name}", intake.run)

    async def stop(self) -> None:
        """End everything; what still runs is left to a takeover. Idempotent."""
        for intake in self.intakes:
            await intake.stop(0.5)
        await self.units.abandon()
        await asyncio.gather(*(executions.close() for executions in self._executions.values()))
        await self._leases.stop()
        if self._cancels is not None:
            await self._cancels.unsubscribe()
        await self._mode.close()
        if self._broker is not None:
            await self._broker.close()

    def _make_executions(self, settings: ServiceSettings, registry: Registry) -> dict[str, Executions]:
        workers = WorkerSettings(registry.modules, settings.log_level, settings.log_format)
        handlers = list(registry.handlers.values())  # a client may put any kind into any queue
        return {name: Executions(queue, handlers, self._reporter, workers) for name, queue in self._queues.items()}

    def _intake(self, queue: QueueSettings, registry: Registry, database: Database, holder: Holder) -> QueueIntake:
        slots = slots_of(queue, registry.queues[queue.name])
        intake = QueueIntake(queue, slots, database, holder, self.units, lambda: self._mode.mode, self.announcer.wakes)
        if self._broker is not None:
            intake.levels = self._levels(self._broker, queue.name, slots, intake)
        return intake

    def _levels(self, broker: BrokerSide, queue: str, slots: int, intake: QueueIntake) -> Levels:
        def on_message() -> None:
            self._mode.delivered()
            intake.wake()

        return Levels(
            broker.bus,
            broker.names,
            queue,
            2 * slots,
            asyncio.get_running_loop().time,
            on_message,
            functools.partial(broker.malformed.note, queue),
        )

    async def _answered(self, answers: Sequence[tuple[Attempt, Settled]]) -> None:
        await self.units.settled(answers)

    def _lost(self, leases: list[Lease]) -> None:
        self.units.lost(leases)

    def _wake_intakes(self) -> None:
        for intake in self.intakes:
            intake.wake()

    async def _hold_messages(self) -> None:
        """Keep the broker from delivering again what waits or runs here."""
        pause = min(queue.ack_wait for queue in self._queues.values()) / BEATS_PER_ACK_WAIT
        while True:
            await asyncio.sleep(pause)
            await in_progress(self.units.messages())
            for intake in self.intakes:
                if intake.levels is not None:
                    await intake.levels.in_progress()
