"""The status service put together: what it owns, in which order it starts, and how it stops."""

from __future__ import annotations

import asyncio

from headrace.v1 import status_pb2_grpc
from headrace_core.access.gate import Gate
from headrace_core.bus.access import Access
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.rpc.server import ConnectionAge, GrpcServer
from headrace_core.runtime.http import HttpServer
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.environment import ServiceSettings
from headrace_core.tasks.figures import Figures, SharedReading
from headrace_core.tasks.queues import read_figures
from headrace_core.tasks.reading import has_schema
from headrace_core.tasks.scaling import read_active, read_work
from headrace_core.telemetry import logs
from headrace_core.tls.certificates import Certificates
from status.activity import Activity
from status.discovery import Discovery
from status.feed import Feed
from status.gauges import QueueGauges
from status.hub import Hub
from status.keda import external_scaler_pb2_grpc
from status.limits import ScalingLimits, WatchLimits
from status.quotas import WatchQuotas
from status.reads import SharedReads
from status.scaler import FULL_NAME as SCALER
from status.scaler import ScalerServicer
from status.servicer import FULL_NAME, StatusServicer
from status.system import System
from status.watch import Watches
from status.web.app import web_app

RETRY_SECONDS = 0.5
CHECK_SECONDS = 2.0
# Room for calls besides the most watches that may be open, streams of the scaler among them.
OTHER_CALLS = 5_000
STREAM_SHARE = 0.9

log = logs.get(__name__)


class StatusService:
    """See headrace_core.runtime.service.Service."""

    def __init__(
        self, settings: ServiceSettings, limits: WatchLimits | None = None, scaling: ScalingLimits | None = None
    ) -> None:
        limits, scaling = limits or WatchLimits(), scaling or ScalingLimits(stream=_stream_seconds(settings))
        self._grace = settings.grace_seconds
        self._gate = Gate.of(settings, [settings.listen, settings.http_listen])
        names = StreamNames(settings.stream_prefix, settings.subject_prefix)
        self._db = Database(settings.database_url)
        access = Access.of(settings, "status")
        self._bus = Bus(settings.nats_url, name="status", access=access) if settings.broker == "nats" else None
        self._hub = Hub(self._db, limits)
        self._discovery = Discovery(self._db, limits)
        self._reads = SharedReads(self._db)
        self._activity = Activity(lambda: read_active(self._db), scaling)
        self._feed = Feed(self._bus, names, self._hub, self._discovery, limits, self._activity.wake)
        self._figures = Figures(lambda: read_figures(self._db))
        self._work = SharedReading(lambda: read_work(self._db), wait=True)
        self._gauges = QueueGauges(self._figures, self._work, scaling)
        self._system = System(self._db, self._bus, names, self._figures)
        quotas = WatchQuotas(settings.topology.namespaces)
        watches = Watches(self._hub, self._reads, self._discovery, quotas)
        certificates = Certificates.of(settings)
        self._grpc = GrpcServer(
            settings.listen,
            name="status",
            max_calls=limits.max_watches + OTHER_CALLS,
            problems=self.problems,
            age=ConnectionAge.of(settings),
            certificates=certificates,
            gate=self._gate,
        )
        servicer = StatusServicer(self._db, self._reads, watches, self._system)
        self._grpc.add(status_pb2_grpc.add_StatusServiceServicer_to_server, servicer, FULL_NAME)
        scaler = ScalerServicer(self._work, self._activity)
        self._grpc.add(external_scaler_pb2_grpc.add_ExternalScalerServicer_to_server, scaler, SCALER)
        web = web_app(self._system, gate=self._gate)
        self._http = HttpServer(web, settings.http_listen, certificates=certificates)
        self._supervisor = Supervisor()
        self._grpc_address: str | None = None
        self._http_address: str | None = None
        self._database_problem = "Postgres has not answered yet"

    @property
    def supervisor(self) -> Supervisor:
        """The background tasks."""
        return self._supervisor

    @property
    def grpc_address(self) -> str | None:
        """Where gRPC answers, once started."""
        return self._grpc_address

    @property
    def http_address(self) -> str | None:
        """Where the HTTP side answers, once started."""
        return self._http_address

    def problems(self) -> list[str]:
        """Only Postgres keeps this service from working; without the bus it is slower by half a second."""
        return [self._database_problem] if self._database_problem else []

    async def start(self) -> None:
        """Serve once Postgres has answered; the bus may come later."""
        await self._db.open()
        await self._wait_for_database()
        if self._bus is not None:
            await self._bus.connect()
        await self._feed.start()
        for name, work in (
            ("watch reader", self._hub.run),
            ("watch sweep", self._feed.run),
            ("watch discovery", self._discovery.run),
            ("database check", self._check_database),
            ("scaler activity", self._activity.run),
            ("queue gauges", self._gauges.run),
            ("drain streams", self._drain_streams),
        ):
            self._supervisor.spawn(name, work)
        if self._gate is not None:
            self._supervisor.spawn("access", self._gate.run)
        self._http_address = await self._http.start()
        self._supervisor.spawn("http server", self._http.serve_until_closed, on_failure="stop")
        self._grpc_address = await self._grpc.start()
        self._grpc.set_serving(True)

    async def drain(self) -> None:
        """Watches end with DRAINING, streams of the scaler with OK; calls in progress finish."""
        self._hub.drain()
        self._activity.drain()
        await self._grpc.stop(self._grace)

    async def stop(self) -> None:
        """Release everything. Idempotent."""
        await self._grpc.stop(0.0)
        await self._http.stop()
        await self._feed.stop()
        await self._supervisor.stop()
        if self._gate is not None:
            await self._gate.close()
        await self._system.close()
        await self._figures.close()
        await self._work.close()
        await self._reads.close()
        if self._bus is not None:
            await self._bus.close()
        await self._db.close()

    async def _wait_for_database(self) -> None:
        """The runtime bounds the start; until then Postgres may take its time."""
        while not await self._database_answers():
            log.info(f"waiting for Postgres: {self._database_problem}", action="status.waiting")
            await asyncio.sleep(RETRY_SECONDS)

    async def _check_database(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self._database_answers()

    async def _database_answers(self) -> bool:
        try:
            found = await has_schema(self._db, timeout=CHECK_SECONDS)
        except DatabaseUnavailable as error:
            self._database_problem = f"Postgres does not answer: {error.message}"
        else:
            self._database_problem = "" if found else "the database has no schema yet; run: headrace db migrate"
        return not self._database_problem

    async def _drain_streams(self) -> None:
        """Whoever stops the server ends the streams: they would otherwise hold it up for the whole grace period."""
        await self._grpc.draining.wait()
        self._hub.drain()
        self._activity.drain()


def _stream_seconds(settings: ServiceSettings) -> float:
    """How long a stream of the scaler lives, so that it ends well before its connection is cut for its age.

    KEDA opens a stream that has ended with OK again after 2 s, and one that was cut later each time.
    """
    if not settings.max_connection_age_seconds:
        return float("inf")
    return STREAM_SHARE * settings.max_connection_age_grace_seconds
