"""A gRPC server as every service of ours has it: limits, health, reflection, statuses, a clean drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]

from headrace_core.access.gate import Gate
from headrace_core.rpc.admission import MAX_CALLS, MAX_STREAMS_PER_CLIENT, Admission
from headrace_core.rpc.handling import Salvage, wrapped
from headrace_core.rpc.health import Health
from headrace_core.rpc.reflection import enable_reflection
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs
from headrace_core.tls.certificates import Certificates

HEALTH = "grpc.health.v1.Health"
MAX_REQUEST_BYTES = 8 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024
HANDSHAKE_SECONDS = 10
# A full view may hold a result of 1 MiB twice, once as protobuf values, which take several times the room.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
# After the last call has ended: room for answers on their way and for clients that are just being told to go.
FAREWELL_SECONDS = 0.5

OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
    # A burst of some 1,000 calls is otherwise refused with CANCELLED.
    ("grpc.server.max_pending_requests", MAX_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_CALLS),
    # A client that connects and never finishes its greeting (a scan, a plain client at a TLS port) would otherwise be
    # kept for two minutes.
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
    # Above the streams that one client may have, so that it is refused in words; without it there is no bound at all to
    # the calls that are begun and never sent.
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CLIENT + 1_000),
    # Both, because between them gRPC refuses at random. Room for a token of a large identity provider.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    # A port that is taken is an error; otherwise two servers would share its calls between them.
    ("grpc.so_reuseport", 0),
    # Watches live for hours: notice a client whose machine is gone, and let clients look for us as often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

log = logs.get(__name__)

Register = Callable[[Any, Any], None]


@dataclass(frozen=True, slots=True)
class ConnectionAge:
    """How old a connection may grow, and how long its calls may still run then. Seconds; age 0: any age."""

    seconds: float = 0.0
    grace_seconds: float = 30.0

    @classmethod
    def of(cls, settings: ServiceSettings) -> ConnectionAge:
        """As the environment sets it."""
        return cls(settings.max_connection_age_seconds, settings.max_connection_age_grace_seconds)

    def options(self) -> list[tuple[str, int]]:
        """For grpc, which spreads the age by a tenth itself, so that connections made together do not end together."""
        if not self.seconds:
            return []
        return [
            ("grpc.max_connection_age_ms", max(int(self.seconds * 1000), 1)),
            ("grpc.max_connection_age_grace_ms", int(self.grace_seconds * 1000)),
        ]


def _no_problems() -> list[str]:
    return []


class GrpcServer:
    """Answers on `listen` (host:port, port 0 takes a free one), with `certificates` over TLS. `name` is for the log.

    Health says SERVING while the server is set so and `problems` (local and quick: no I/O in it) finds none.
    `add` every servicer, then `start`, then `set_serving(True)`. Servicers of streams wait on `draining` besides their
    own events and end their streams with `Draining` when it is set. A call whose client has gone, or whose deadline has
    passed, is cancelled: its servicer gets CancelledError. `gate` says who may call what; None: everybody everything.
    """

    def __init__(
        self,
        listen: str,
        *,
        name: str,
        max_calls: int = MAX_CALLS,
        max_streams_per_client: int = MAX_STREAMS_PER_CLIENT,
        problems: Callable[[], list[str]] = _no_problems,
        age: ConnectionAge = ConnectionAge(),
        certificates: Certificates | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._listen = listen
        self._certificates = certificates
        self._age = age
        self._gate = gate
        self._name = name
        self._admission = Admission(max_calls, max_streams_per_client)
        # Health answers through the drain, and a watch on it holds nothing up.
        self._health_admission = Admission(max_calls)
        self._health = Health(problems)
        self._methods: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        self._server: grpc.aio.Server | None = None
        self.add(health_pb2_grpc.add_HealthServicer_to_server, self._health, HEALTH)

    @property
    def draining(self) -> asyncio.Event:
        """Set when the server begins to stop."""
        return self._admission.draining

    def add(
        self,
        register: Register,
        servicer: object,
        full_name: str,
        salvage: Mapping[str, Salvage] = MappingProxyType({}),
    ) -> None:
        """Add a service: the generated `add_XServicer_to_server`, its servicer, and its name with the package.

        `salvage`: by method, what is made of bytes that cannot be parsed (see `Salvage`). Raises ValueError if
        `register` registers another service.
        """
        admission = self._health_admission if full_name == HEALTH else self._admission
        registrar = _Registrar()
        register(servicer, registrar)
        if set(registrar.found) != {full_name}:
            raise ValueError(f"{full_name} was announced, {', '.join(registrar.found)} registered")
        self._methods[full_name] = wrapped(full_name, registrar.found[full_name], admission, salvage, self._gate)
        self._health.know(full_name)

    async def start(self) -> str:
        """Bind and answer; returns the bound host:port. Health says NOT_SERVING until `set_serving`.

        Raises SettingsError if the address cannot be bound.
        """
        server = grpc.aio.server(options=[*OPTIONS, *self._age.options()])
        for service, methods in self._methods.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        enable_reflection(tuple(self._methods), server, self._gate)
        port = self._bind(server)
        await server.start()
        self._server = server
        return f"{self._listen.rpartition(':')[0]}:{port}"

    def _bind(self, server: grpc.aio.Server) -> int:
        try:
            if self._certificates is None:
                return server.add_insecure_port(self._listen)
            return server.add_secure_port(self._listen, self._certificates.grpc_credentials())
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {self._listen}: the address is taken, or not ours") from error

    def set_serving(self, serving: bool) -> None:
        """What health says, for every service here, as long as there are no problems."""
        self._health.set_serving(serving)

    async def stop(self, grace: float) -> None:
        """Drain and stop within `grace` seconds: idempotent, legal before start.

        Health says NOT_SERVING; new calls are refused (DRAINING); streams are told; what runs may finish. What has not
        finished after `grace` is cancelled.
        """
        self._health.set_serving(False)
        self.draining.set()
        server, self._server = self._server, None
        if server is None:
            return
        finished = await self._admission.wait_idle(grace)
        if not finished:
            log.warning(
                "calls were still running after the grace period",
                action="rpc.cut",
                server=self._name,
                calls=self._admission.running,
                grace=grace,
            )
        self._health.close()
        await server.stop(FAREWELL_SECONDS if finished else None)


class _Registrar:
    """Takes what the generated function gives to a server, so that it can be wrapped before the server sees it."""

    def __init__(self) -> None:
        self.found: dict[str, Mapping[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The same methods, already looked up by name: not needed."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.found[service] = handlers
