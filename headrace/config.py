"""Where the services are and how to talk to them: read once, when a client is made, never at import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

from headrace.bearer import Bearer
from headrace.tls import Tls

PRODUCER_VARIABLE = "HEADRACE_PRODUCER_ADDRESS"
STATUS_VARIABLE = "HEADRACE_STATUS_ADDRESS"
DEFAULT_PRODUCER = "127.0.0.1:50051"
DEFAULT_STATUS = "127.0.0.1:50052"
DEFAULT_NAMESPACE = "default"
DEFAULT_TIMEOUT = 10.0
# The services accept 8 MiB; an answer may hold a task's payload and its result twice.
MAX_REQUEST_BYTES = 8 * 1024 * 1024
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# Only while a call is open: the calls that last are watches, which have heartbeats, so no server sees too many pings.
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A client's settings. All times are in seconds."""

    producer: str
    """host:port (or any gRPC target) of the producer."""
    status: str
    """host:port (or any gRPC target) of the status service."""
    namespace: str = DEFAULT_NAMESPACE
    """The tenant of submits, lists and label watches."""
    timeout: float = DEFAULT_TIMEOUT
    """For every call that names no timeout of its own; at a submit it covers all repeats."""
    silence_timeout: float = 45.0
    """A watch that hears nothing for so long connects again. The server sends a heartbeat every 15 s."""
    reconnect_timeout: float = 120.0
    """A watch that could not reach the server for so long gives up."""
    tls: Tls | None = None
    """How connections are secured; None: not at all, or by credentials that the caller gave."""
    bearer: Bearer | None = field(default=None, repr=False)
    """Sends the token with each call; None: there is none."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty address or a time that is not above zero."""
        for name in ("producer", "status"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}: an address such as {DEFAULT_PRODUCER} is needed, not an empty text")
        for name in ("timeout", "silence_timeout", "reconnect_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0 seconds, not {getattr(self, name)!r}")


def address(given: str | None, variable: str, default: str, environ: Mapping[str, str] | None = None) -> str:
    """Return `given`, else the environment's `variable`, else `default`."""
    if given is not None:
        return given
    return (os.environ if environ is None else environ).get(variable) or default


def chosen_tls(given: Tls | bool | None) -> Tls | None:
    """Return `given`, else what the environment says; True: the system's authorities, False: no TLS.

    Raises ValueError.
    """
    if isinstance(given, bool):
        return Tls() if given else None
    return Tls.from_environment(os.environ) if given is None else given


def channel_options() -> list[tuple[str, str | int]]:
    """Return the options of every channel: retries of idempotent calls, limits, keepalive, quick reconnects."""
    service_config = resources.files("headrace").joinpath("service_config.json").read_text(encoding="utf-8")
    return [
        ("grpc.service_config", service_config),
        ("grpc.enable_retries", 1),
        ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        # By default a name is not looked up again within 30 s. When all pods behind it are replaced within that time, a
        # client knows only addresses where nobody answers any more, and its calls fail until the time is over.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # gRPC's own waits between connection attempts start at 1 s and reach 2 minutes: longer than our callers wait.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
