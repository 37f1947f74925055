"""The whole stack on one machine: Postgres, NATS and the services, on loopback, in one folder.

Used by `headrace dev` and by the tests: what the tests prove is what the developer runs.
"""

import asyncio
import contextlib
import functools
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from headrace_core.settings.environment import ServiceSettings
from headrace_core.stack.errors import StackError
from headrace_core.stack.folder import FolderLock
from headrace_core.stack.keeping import Backoff, Part, keep_alive, report_consumer
from headrace_core.stack.logins import as_service
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.ports import require_free
from headrace_core.stack.postgres import Postgres
from headrace_core.stack.preparing import check_settings, prepare
from headrace_core.stack.services import Service, inherited_environment, loopback

DATABASE = "headrace"
LOG_FILE = "headrace.log"
ENDPOINTS_FILE = "endpoints.json"


@dataclass(frozen=True)
class Endpoints:
    """Where the stack is reached. Written to `<data-dir>/endpoints.json` while it runs."""

    producer: str
    status: str
    http: str
    database_url: str
    nats_url: str

    def as_json(self) -> str:
        """Return the contents of endpoints.json."""
        document = {
            "producer": self.producer,
            "status": self.status,
            "http": self.http,
            "databaseUrl": self.database_url,
            "natsUrl": self.nats_url,
        }
        return json.dumps(document, indent=2) + "\n"


@dataclass(frozen=True)
class StackOptions:
    """How a local stack is started; port 0 is any free one.

    `handlers` are importable modules besides the built-in kinds. `environment` is added to the inherited one for
    every service, `service_environment` to the one of that name. `working_folder` is where handler modules and
    headrace.toml are looked for.
    """

    data_dir: Path
    consumers: int = 2
    handlers: Sequence[str] = ()
    producer_port: int = 0
    status_port: int = 0
    http_port: int = 0
    database_port: int = 0
    nats_port: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    service_environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    working_folder: Path = field(default_factory=Path.cwd)


class LocalStack:
    """An asynchronous context manager: inside it every service serves and every kind is registered.

    Parts: `postgres`, `nats`, and `services` by name (`producer`, `status`, `consumer-1`, …). A part that ends by
    itself is started again; `stop_part`, `kill_part` and `start_part` are for those who want to see it fail.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        consumers: int = 2,
        handlers: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        echo: TextIO | None = None,
        options: StackOptions | None = None,
    ) -> None:
        self.options = options or StackOptions(
            data_dir, consumers=consumers, handlers=handlers, environment=environment or {}
        )
        self.data_dir = self.options.data_dir.absolute()
        self.services: dict[str, Service] = {}
        self.postgres: Postgres
        self.nats: NatsServer
        self.endpoints: Endpoints
        self._echo = echo
        self._log: StackLog
        self._settings: ServiceSettings
        self._failed: asyncio.Future[None]
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._cleanup = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._failed = asyncio.get_running_loop().create_future()
        async with contextlib.AsyncExitStack() as cleanup:
            await self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    @property
    def log_file(self) -> Path:
        """The log of all parts."""
        return self.data_dir / LOG_FILE

    async def stop_part(self, name: str) -> None:
        """Stop a part cleanly; it stays away until `start_part`."""
        await self._release(name)
        await self._part(name).stop()

    async def kill_part(self, name: str) -> None:
        """Kill a part; it stays away until `start_part`."""
        await self._release(name)
        await self._part(name).kill()

    async def start_part(self, name: str) -> None:
        """Start a part that was stopped or killed, and keep it alive again."""
        await self._part(name).start()
        self._keep(self._part(name))

    async def add_consumer(self) -> Service:
        """Start one more consumer and return it."""
        number = 1 + sum(service.module == "consumer" for service in self.services.values())
        service = self._service(f"consumer-{number}", "consumer")
        await service.start()
        self._keep(service)
        return service

    async def failure(self) -> None:
        """Wait until a part can no longer be kept alive, which is a defect, and raise why."""
        await asyncio.shield(self._failed)

    async def _start(self, cleanup: contextlib.AsyncExitStack) -> None:
        self._check_ports()
        self._settings = check_settings(self._environment(), self.options.working_folder)
        lock = await FolderLock.take(self.data_dir)
        cleanup.callback(lock.release)
        self._log = StackLog(self.log_file, self._echo)
        cleanup.callback(self._log.close)
        (self.data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        await self._start_servers(cleanup, lock)
        await self._start_services(cleanup)
        self._publish_endpoints(cleanup)
        # Last in, first out: keepers end before anything that they would start again.
        cleanup.push_async_callback(self._release_all)
        for part in self._parts().values():
            self._keep(part)

    async def _start_servers(self, cleanup: contextlib.AsyncExitStack, lock: FolderLock) -> None:
        options, fds = self.options, (lock.fd,)
        self.postgres = Postgres(self.data_dir / "postgres", self._log, port=options.database_port, pass_fds=fds)
        self.nats = NatsServer(self.data_dir / "nats", self._log, port=options.nats_port, pass_fds=fds)
        cleanup.push_async_callback(self.postgres.stop)
        cleanup.push_async_callback(self.nats.stop)
        await together(self.postgres.start(), self.nats.start())
        database_url = await self.postgres.create_database(DATABASE)
        for line in await prepare(database_url, self.nats.url, self._settings):
            self._log.line("stack", line)

    async def _start_services(self, cleanup: contextlib.AsyncExitStack) -> None:
        options = self.options
        cleanup.push_async_callback(self._stop_services)
        self._service("producer", "producer", HEADRACE_LISTEN=loopback(options.producer_port))
        self._service(
            "status",
            "status",
            HEADRACE_LISTEN=loopback(options.status_port),
            HEADRACE_HTTP_LISTEN=loopback(options.http_port),
        )
        for number in range(1, options.consumers + 1):
            self._service(f"consumer-{number}", "consumer")
        await together(*(service.start() for service in self.services.values()))

    async def _stop_services(self) -> None:
        async with asyncio.TaskGroup() as group:
            for service in self.services.values():
                group.create_task(service.stop(), name=f"stop-{service.name}")

    def _service(self, name: str, module: str, **settings: str) -> Service:
        environment = self._environment() | {
            "HEADRACE_DATABASE_URL": as_service(self.postgres.url(DATABASE), module),
            "HEADRACE_NATS_URL": self.nats.url,
            "HEADRACE_LISTEN": loopback(0),
            "HEADRACE_OPS_LISTEN": loopback(0),
            **settings,
            **self.options.service_environment.get(name, {}),
        }
        if self.options.handlers:
            environment["HEADRACE_HANDLERS"] = ",".join(self.options.handlers)
        service = Service(
            name,
            module,
            environment,
            self._log,
            self.data_dir / "run",
            grace=self._settings.grace_seconds,
            working_folder=self.options.working_folder,
        )
        self.services[name] = service
        return service

    def _environment(self) -> dict[str, str]:
        defaults = {
            "HEADRACE_CREATE_QUEUES": "true",
            "HEADRACE_IMPLICIT_NAMESPACES": "true",
            "HEADRACE_LOG_FORMAT": "console",
        }
        inherited = inherited_environment(self.options.working_folder)
        return defaults | inherited | dict(self.options.environment)

    def _publish_endpoints(self, cleanup: contextlib.AsyncExitStack) -> None:
        producer, status = self.services["producer"].addresses, self.services["status"].addresses
        self.endpoints = Endpoints(
            producer=_required(producer.grpc, "producer", "gRPC"),
            status=_required(status.grpc, "status", "gRPC"),
            http=f"http://{_required(status.http, 'status', 'HTTP')}",
            database_url=self.postgres.url(DATABASE),
            nats_url=self.nats.url,
        )
        path = self.data_dir / ENDPOINTS_FILE
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(self.endpoints.as_json(), encoding="utf-8")
        unfinished.replace(path)
        cleanup.callback(path.unlink, missing_ok=True)

    def _parts(self) -> dict[str, Part]:
        return {"postgres": self.postgres, "nats": self.nats, **self.services}

    def _part(self, name: str) -> Part:
        return self._parts()[name]

    def _keep(self, part: Part) -> None:
        clock = asyncio.get_running_loop().time
        keeping = keep_alive(part, self._log, Backoff(), clock, functools.partial(self._ended, part))
        keeper = asyncio.create_task(keeping, name=f"keep-{part.name}")
        keeper.add_done_callback(self._kept)
        self._keepers[part.name] = keeper

    async def _ended(self, part: Part) -> None:
        if isinstance(part, Service) and part.module == "consumer":
            await report_consumer(self.postgres.url(DATABASE), part.pid, self._log)

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() or self._failed.done():
            return
        error = keeper.exception()
        self._failed.set_exception(error or RuntimeError(f"{keeper.get_name()} ended"))
        self._failed.exception()  # read once: whoever does not wait for it is not warned about it

    async def _release(self, name: str) -> None:
        keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])

    async def _release_all(self) -> None:
        for name in list(self._keepers):
            await self._release(name)

    def _check_ports(self) -> None:
        options = self.options
        require_free(options.producer_port, "--producer-port")
        require_free(options.status_port, "--status-port")
        require_free(options.http_port, "--http-port")
        require_free(options.database_port, "the database's port")
        require_free(options.nats_port, "the port of NATS")


async def together(*starts: Coroutine[None, None, None]) -> None:
    """Await all; when one fails, end the others and raise its StackError as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except* StackError as failures:
        raise failures.exceptions[0] from None


def _required(address: str | None, name: str, what: str) -> str:
    if address is None:
        raise StackError(f"the service {name} started without saying where it serves {what}")
    return address
