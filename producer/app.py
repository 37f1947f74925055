"""The producer's composition root: what it consists of, and in which order that starts and stops."""

from __future__ import annotations

import asyncio

from headrace.v1 import dead_letter_pb2_grpc, producer_pb2_grpc, queue_pb2_grpc
from headrace_core.access.gate import Gate
from headrace_core.bus.access import Access
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.rpc.server import ConnectionAge, GrpcServer
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.tasks import queues
from headrace_core.tasks.figures import Figures
from headrace_core.telemetry import logs
from headrace_core.tls.certificates import Certificates
from producer.admission import Admission
from producer.announcing import Announcer
from producer.auditing import DeniedActions
from producer.dead_letters import DeadLetterServicer
from producer.known_kinds import KnownKinds
from producer.namespaces import Namespaces
from producer.publishing import TaskPublisher
from producer.queue_loads import QueueLoads
from producer.queues import QueueServicer
from producer.redrive import Redrive
from producer.relay import Relay
from producer.retention import Retention
from producer.salvage import refused_request, salvaged_batch
from producer.servicer import ProducerServicer
from producer.submission import Submission
from producer.submit import GroupCommit

POOL_SIZE = 12
START_AGAIN_SECONDS = 0.5
FLUSH_SECONDS = 2.0
# Longer than an ordinary fail-over of a pool's connections, shorter than a load balancer's patience.
SILENT_SECONDS = 5.0

_log = logs.get("headrace.producer")


class ProducerService:
    """Accepts tasks over gRPC and hosts the relay. See headrace_core.runtime.service.Service."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._supervisor = Supervisor()
        self._grpc_address: str | None = None
        self._gate = Gate.of(settings, [settings.listen])
        names = StreamNames(settings.stream_prefix, settings.subject_prefix)
        self._db = Database(settings.database_url, max_size=POOL_SIZE)
        self._namespaces = Namespaces.of(self._db, settings)
        access = Access.of(settings, "producer")
        self._bus = Bus(settings.nats_url, name="producer", access=access) if settings.broker == "nats" else None
        self._kinds = KnownKinds(self._db)
        self._figures = Figures(lambda: queues.read_figures(self._db))
        self._loads = QueueLoads(self._db)
        self._publisher = TaskPublisher(self._db, self._bus, names)
        self._announcer = Announcer(self._bus, names)
        redrive = Redrive(self._db, self._kinds, self._publisher, self._announcer)
        self._relay = Relay(
            self._db, self._bus, names, self._publisher, self._announcer, self._kinds, self._loads, redrive
        )
        self._retention = Retention.of(self._db, settings)
        self._commits = GroupCommit(self._db, self._relay.committed)
        self._server = self._build_server(redrive)

    @property
    def supervisor(self) -> Supervisor:
        """The background tasks."""
        return self._supervisor

    @property
    def grpc_address(self) -> str | None:
        """Where it answers, once started."""
        return self._grpc_address

    @property
    def http_address(self) -> str | None:
        """Nowhere."""
        return None

    def problems(self) -> list[str]:
        """Not ready without Postgres. An absent broker is no problem: submits are accepted (promise G7)."""
        silent = self._loads.age()
        if silent > SILENT_SECONDS:
            return [f"Postgres has not answered for {silent:.0f} s"]
        return [self._db.shortage] if self._db.shortage else []

    async def start(self) -> None:
        """Declare the queues, read what admission needs, then serve."""
        await self._db.open()
        await self._declare_queues()
        if self._bus is not None:
            await self._bus.connect()
        self._supervisor.spawn("kinds", self._kinds.keep_fresh)
        self._supervisor.spawn("queue-loads", self._loads.keep_fresh)
        self._supervisor.spawn("namespaces", self._namespaces.keep_fresh)
        if self._gate is not None:
            self._gate.denied = DeniedActions(self._db).note
            self._supervisor.spawn("access", self._gate.run)
        self._relay.start(self._supervisor)
        self._supervisor.spawn("retention", self._retention.run)
        self._grpc_address = await self._server.start()
        self._server.set_serving(True)

    async def drain(self) -> None:
        """Refuse new calls, finish those in progress and their commits."""
        await self._server.stop(self._settings.grace_seconds)
        await self._commits.close()
        await self._publisher.flush(FLUSH_SECONDS)

    async def stop(self) -> None:
        """End the background tasks, note what was published, close the connections."""
        await self._server.stop(0)
        await self._commits.close()
        await self._supervisor.stop()
        if self._gate is not None:
            await self._gate.close()
        await self._publisher.close()
        await self._relay.close()
        await self._figures.close()
        if self._bus is not None:
            await self._bus.close()
        await self._db.close()

    async def _declare_queues(self) -> None:
        """Postgres may be away for a moment while everything starts; the process limits the whole start."""
        while True:
            try:
                await self._refuse_a_useless_database()
                await queues.declare(self._db, self._settings.topology.queues.values())
                await self._loads.refresh()
            except DatabaseUnavailable as error:
                _log.warning("the start waits for Postgres", action="start_waits", error=error.message)
                await asyncio.sleep(START_AGAIN_SECONDS)
            else:
                return

    async def _refuse_a_useless_database(self) -> None:
        """Without its schema nothing works; without fsync a commit would promise nothing (promise G1)."""
        (found,) = await self._db.fetch(
            "select current_setting('fsync') as fsync, to_regclass('headrace_core.units')::text as units"
        )
        if found["fsync"] != "on":
            raise SettingsError("Postgres runs with fsync = off; an accepted task could be lost: switch it on")
        if found["units"] is None:
            raise SettingsError("the database has no schema of Headrace; run: headrace db migrate")

    def _build_server(self, redrive: Redrive) -> GrpcServer:
        server = GrpcServer(
            self._settings.listen,
            name="producer",
            problems=self.problems,
            age=ConnectionAge.of(self._settings),
            certificates=Certificates.of(self._settings),
            gate=self._gate,
        )
        admission = Admission(self._kinds, self._loads, self._namespaces)
        submission = Submission(self._db, admission, self._commits, self._namespaces)
        server.add(
            producer_pb2_grpc.add_ProducerServiceServicer_to_server,
            ProducerServicer(self._db, submission, self._announcer),
            "headrace.v1.ProducerService",
            salvage={"SubmitTask": refused_request, "SubmitTasks": salvaged_batch},
        )
        server.add(
            dead_letter_pb2_grpc.add_DeadLetterServiceServicer_to_server,
            DeadLetterServicer(self._db, redrive),
            "headrace.v1.DeadLetterService",
        )
        server.add(
            queue_pb2_grpc.add_QueueServiceServicer_to_server,
            QueueServicer(self._db, self._figures, self._loads, self._relay, self._announcer),
            "headrace.v1.QueueService",
        )
        return server
