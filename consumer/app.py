"""The consumer as a service: in which order it starts, drains and stops."""

from __future__ import annotations

import asyncio
import functools
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

from consumer.deletion_cost import DeletionCost, OwnPod
from consumer.drain import drain
from consumer.last_resort import LastResort
from consumer.queues import queues_of
from consumer.registry import Registry, collect
from consumer.works import Works
from headrace_core.bus.access import Access
from headrace_core.bus.connection import Bus
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.rpc.server import GrpcServer
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.tasks.deaths import worker_name
from headrace_core.tasks.model import Holder
from headrace_core.telemetry import logs, tracing
from headrace_core.tls.certificates import Certificates

CONNECT_SECONDS = 2.0
DATABASE_RETRY_SECONDS = 0.5
T = TypeVar("T")

log = logs.get(__name__)


class ConsumerService:
    """A consumer process; see headrace_core.runtime.service.Service."""

    def __init__(self, settings: ServiceSettings, *, built_in: bool = True) -> None:
        """`built_in`: with consumer.builtin. Raises SettingsError for handler modules that cannot be used."""
        self._settings = settings
        self._registry = registry_of(settings, built_in=built_in)
        name = worker_name(os.getpid())
        traced = tracing.spans is not None
        self._holder = Holder(uuid.uuid4(), name, self._registry.kinds, self._registry.sharded, traced)
        self._database = Database(settings.database_url)
        access = Access.of(settings, "consumer")
        self._bus = (
            Bus(settings.nats_url, name=f"consumer {name}", access=access) if settings.broker == "nats" else None
        )
        self._grpc = GrpcServer(
            settings.listen, name="consumer", problems=self.problems, certificates=Certificates.of(settings)
        )
        self._supervisor = Supervisor()
        self._grpc_address: str | None = None
        self._works: Works | None = None
        self._last_resort: LastResort | None = None
        self._cost: asyncio.Task[None] | None = None

    @property
    def supervisor(self) -> Supervisor:
        """The background tasks."""
        return self._supervisor

    @property
    def grpc_address(self) -> str | None:
        """Where health answers."""
        return self._grpc_address

    @property
    def http_address(self) -> str | None:
        """A consumer has no HTTP side but the ops port."""
        return None

    def problems(self) -> list[str]:
        """Why this consumer takes no work; empty if it does."""
        return ["the consumer is starting"] if self._works is None else self._works.problems()

    async def start(self) -> None:
        """Return when the kinds are registered and work is taken."""
        await self._database.open()
        queues = await _until_available(functools.partial(queues_of, self._database, self._registry, self._settings))
        if self._bus is not None:
            await self._bus.connect(CONNECT_SECONDS)
        self._works = Works(
            self._settings, queues, self._registry, self._holder, self._database, self._bus, self._supervisor
        )
        await _until_available(self._works.presence.announce)
        await self._works.start()
        self._last_resort = LastResort(self._settings, self._holder, self._works.held)
        self._last_resort.install()
        if self._settings.pod_deletion_cost:
            self._cost = self._note_deletion_cost(self._works)
        self._grpc_address = await self._grpc.start()
        self._grpc.set_serving(True)

    async def drain(self) -> None:
        """Take nothing new; finish or hand back what runs, within the grace period."""
        self._grpc.set_serving(False)
        if self._cost is not None:
            self._cost.cancel()  # whoever removes pods has chosen this one
        if self._works is not None:
            works, settings = self._works, self._settings
            limits = {"grace": settings.grace_seconds, "finish": settings.finish_seconds}
            await drain(works.intakes, works.units, works.announcer, works.presence, **limits)

    async def stop(self) -> None:
        """Release everything."""
        await self._grpc.stop(0.5)
        if self._works is not None:
            await self._works.stop()
            await self._works.presence.leave()
        await self._supervisor.stop(2.0)
        if self._bus is not None:
            await self._bus.close()
        await self._database.close()
        if self._last_resort is not None:
            self._last_resort.disarm()

    def _note_deletion_cost(self, works: Works) -> asyncio.Task[None]:
        pod = OwnPod.of(self._settings, os.environ)
        return self._supervisor.spawn("deletion-cost", DeletionCost(pod, lambda: works.units.running).run)


def registry_of(settings: ServiceSettings, *, built_in: bool = True) -> Registry:
    """What a consumer of these settings runs. Raises SettingsError: nothing, or a module that cannot be used."""
    if not settings.built_in and not settings.handlers:
        raise SettingsError("HEADRACE_BUILT_IN = false leaves nothing to run: name modules in HEADRACE_HANDLERS")
    return collect(settings.handlers, built_in=built_in and settings.built_in)


async def _until_available(work: Callable[[], Awaitable[T]]) -> T:
    """Postgres may be away for a moment while everything starts; the process limits the whole start."""
    while True:
        try:
            return await work()
        except DatabaseUnavailable as error:
            log.warning("the start waits for Postgres", action="start.waiting", error=error.message)
            await asyncio.sleep(DATABASE_RETRY_SECONDS)
