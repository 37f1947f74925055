"""The environment of a service: every HEADRACE_ variable, typed. A variable that nobody knows stops the start.

A misspelt variable would otherwise run a service with a default that its owner believes to have changed.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from headrace_core.settings.errors import SettingsError
from headrace_core.settings.explain import explain
from headrace_core.settings.queues import SUBJECT_PREFIX, BrokerChoice, Topology, load_topology

PREFIX = "HEADRACE_"
# For a Service called headrace-producer Kubernetes sets HEADRACE_PRODUCER_SERVICE_HOST, …_SERVICE_PORT[_NAME],
# …_PORT=tcp://…, …_PORT_50051_TCP=tcp://… and …_PORT_50051_TCP_{PROTO,PORT,ADDR} in every pod of the namespace.
KUBERNETES = re.compile(
    r"HEADRACE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
KUBERNETES_PORT = re.compile(r"HEADRACE_(?:\w+_)?PORT")
KUBERNETES_PORT_VALUE = re.compile(r"(?:tcp|udp|sctp)://")

OF_CLIENTS = "Read by the SDK and the CLI; accepted and not used by services."


def _listen_address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("an address is host:port, for example 127.0.0.1:50051; port 0 takes a free one")
    return value


def _postgres_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("it must begin with postgresql://")
    return value


def _nats_url(value: str) -> str:
    if not all(part.strip().startswith(("nats://", "tls://")) for part in value.split(",")):
        raise ValueError("it must be one or more addresses that begin with nats:// or tls://, separated by commas")
    return value


def _an_hour_or_for_ever(days: float) -> float:
    """Whoever watches, retries or resumes needs a while in which what has ended is still there."""
    if 0.0 < days < 1 / 24:
        raise ValueError("it must be 0, for ever, or at least an hour (0.05 days)")
    return days


def _separated(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


Listen = Annotated[str, AfterValidator(_listen_address)]


class ServiceSettings(BaseModel):
    """What a service reads from its environment. An empty variable counts as not set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    database_url: Annotated[str, AfterValidator(_postgres_url)] = Field(
        default="postgresql://postgres@127.0.0.1:5432/headrace", description="Where Postgres is."
    )
    nats_url: Annotated[str, AfterValidator(_nats_url)] = Field(
        default="nats://127.0.0.1:4222",
        description="Where NATS is; several addresses of a cluster separated by commas.",
    )
    nats_tls_ca_file: Path | None = Field(
        default=None,
        description="The authority that NATS must be certified by, a PEM file. Set: no connection without TLS. Unset, "
        "with tls:// addresses: the system's authorities.",
    )
    nats_tls_cert_file: Path | None = Field(
        default=None, description="The service's own certificate for NATS, a PEM file, with its chain."
    )
    nats_tls_key_file: Path | None = Field(default=None, description="The key of that certificate, a PEM file.")
    nats_user: str = Field(default="", description="The user on NATS, unless the URL names one.")
    nats_password: SecretStr = Field(default=SecretStr(""), description="The user's password. Never logged.")
    nats_password_file: Path | None = Field(
        default=None, description="A file with the password in place of it, read at each connection."
    )
    nats_credentials_file: Path | None = Field(
        default=None,
        description="A credentials file of NATS (JWT and seed, as nsc writes it) in place of user and password, read "
        "at each connection.",
    )
    broker: BrokerChoice = Field(
        default="nats", description="`none`: Postgres alone, no NATS at all. Overrides `broker` of headrace.toml."
    )
    subject_prefix: str = Field(
        default="headrace",
        pattern=SUBJECT_PREFIX,
        description="First token of every NATS subject. Overrides `subject_prefix` of headrace.toml.",
    )
    stream_prefix: str = Field(
        default="HEADRACE",
        pattern=SUBJECT_PREFIX,
        description="First part of every stream's name. Unless set: `subject_prefix` in capitals.",
    )
    listen: Listen = Field(
        default="127.0.0.1:0",
        description="Where the service answers gRPC (a consumer: health only), host:port; port 0 takes a free one. "
        "Default: producer 127.0.0.1:50051, status 127.0.0.1:50052, consumer 127.0.0.1:0.",
    )
    ops_listen: Listen = Field(
        default="127.0.0.1:0",
        description="Where /livez, /readyz and /metrics are; port 0 takes a free one (see the log).",
    )
    http_listen: Listen = Field(
        default="127.0.0.1:8080",
        description="Status only: where /api/async-status and /api/ai-status are; / leads to the former.",
    )
    config: Path | None = Field(
        default=None, description="Path of headrace.toml; unless set, the one in the working directory."
    )
    handlers: Annotated[list[str], BeforeValidator(_separated)] = Field(
        default_factory=list,
        description="Consumer only: importable modules with handlers, separated by commas, besides the built-in ones.",
    )
    built_in: bool = Field(
        default=True,
        description="Consumer only: run the built-in kinds `echo` and `ai.analyze` too, and so pull `default`. `false` "
        "for consumers that are there for other queues alone.",
    )
    grace_seconds: float = Field(
        default=20.0,
        ge=0.0,
        le=3600.0,
        description="How long a service may take to stop after SIGTERM, in seconds.",
    )
    finish_seconds: float = Field(
        default=2.0,
        ge=0.0,
        le=3600.0,
        description="Consumer only: how long handlers that were asked to end may take to finish, in seconds, before "
        "they are interrupted and their units handed back. Never more than the grace period allows.",
    )
    max_connection_age_seconds: float = Field(
        default=0.0,
        ge=0.0,
        le=86400.0,
        description="Producer and status: how old a client's gRPC connection may grow before the client is told to "
        "open another, in seconds, give or take a tenth; 0: any age. Behind a headless Service this is how clients get "
        "to know new replicas; watches resume.",
    )
    max_connection_age_grace_seconds: float = Field(
        default=30.0,
        ge=0.0,
        le=86400.0,
        description="Producer and status: how long the calls on a connection that is too old may still run before they "
        "are cut, in seconds.",
    )
    auth_file: Path | None = Field(
        default=None,
        description="Producer and status: the access file (TOML), see access.md; unless set, whoever reaches the "
        "service may do everything. Read again when it changes.",
    )
    require_auth: bool = Field(
        default=False,
        description="Do not start on an address that is more than loopback without TLS and, producer and status, "
        "without `HEADRACE_AUTH_FILE`.",
    )
    implicit_namespaces: bool = Field(
        default=False,
        description="Producer only: namespaces that headrace.toml does not declare exist too, without quotas. Where it "
        "declares none, they always do.",
    )
    pod_deletion_cost: bool = Field(
        default=False,
        description="Consumer only, in Kubernetes: note the number of running units in the annotation "
        "`controller.kubernetes.io/pod-deletion-cost` of the consumer's own pod, so that the idle ones are removed "
        "first. Needs `HEADRACE_POD_NAME`, `HEADRACE_POD_NAMESPACE` and the right to patch that pod.",
    )
    pod_name: str = Field(default="", description="In Kubernetes: the name of the service's own pod.")
    pod_namespace: str = Field(default="", description="In Kubernetes: the namespace of the service's own pod.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="For machines, or for people at a terminal."
    )
    create_queues: bool = Field(
        default=False,
        description="Create, with defaults, a queue that a handler names and nobody declared; unless set, an error.",
    )
    ready_file: Path | None = Field(
        default=None,
        description="Written once the service serves: a JSON object with `grpc`, `ops`, `http` (addresses or null) and "
        "`pid`; removed at a clean stop.",
    )
    retention_days: Annotated[float, AfterValidator(_an_hour_or_for_ever)] = Field(
        default=30.0,
        ge=0.0,
        le=36500.0,
        description="Producer only: how long a task that COMPLETED, was CANCELLED or EXPIRED is kept after its end, in "
        "days, with its result and its idempotency key; at least an hour (0.05); 0: for ever. FAILED is always kept. "
        "The same in every replica, or the shortest counts.",
    )
    retention_events_days: Annotated[float, AfterValidator(_an_hour_or_for_ever)] = Field(
        default=7.0,
        ge=0.0,
        le=36500.0,
        description="Producer only: how long the events of such a task are kept after its end, in days; at least an "
        "hour (0.05); 0: as long as the task.",
    )
    retention_audit_days: Annotated[float, AfterValidator(_an_hour_or_for_ever)] = Field(
        default=365.0,
        ge=0.0,
        le=36500.0,
        description="Producer only: how long the record of what operators did is kept, in days; at least an hour; "
        "0: for ever.",
    )
    retention_share: float = Field(
        default=0.2,
        gt=0.0,
        le=1.0,
        description="Producer only: how much of one connection's time a replica may spend on removing.",
    )
    tls_cert_file: Path | None = Field(
        default=None,
        description="The service's certificate with its chain, PEM: with it the gRPC port, and the status service's "
        "HTTP port, speak TLS 1.2 or newer. Files that change are taken by new connections, without a restart. The ops "
        "port stays plain.",
    )
    tls_key_file: Path | None = Field(default=None, description="That certificate's key, PEM, not encrypted.")
    tls_client_ca_file: Path | None = Field(
        default=None,
        description="Authorities of the clients, PEM: with it every client, of gRPC and HTTP alike, needs a "
        "certificate of one of them.",
    )
    producer_address: str = Field(default="", description=OF_CLIENTS)
    status_address: str = Field(default="", description=OF_CLIENTS)
    tls: str = Field(default="", description=OF_CLIENTS)
    tls_ca_file: str = Field(default="", description=OF_CLIENTS)
    client_cert_file: str = Field(default="", description=OF_CLIENTS)
    client_key_file: str = Field(default="", description=OF_CLIENTS)
    token: SecretStr = Field(default=SecretStr(""), description=OF_CLIENTS)
    token_file: str = Field(default="", description=OF_CLIENTS)
    ai_backend: Literal["embedded", "openai"] = Field(
        default="embedded", description="`ai.analyze`: the model in the process, or an OpenAI-compatible server."
    )
    ai_base_url: str = Field(default="", description="`ai.analyze`: where the OpenAI-compatible server is.")
    ai_model: str = Field(default="", description="`ai.analyze`: which of the server's models.")
    ai_api_key: SecretStr = Field(default=SecretStr(""), description="`ai.analyze`: the server's key. Never logged.")
    ai_count_tokens: bool = Field(
        default=False, description="`ai.analyze`: ask the server for the tokens used, as metrics. Some servers refuse."
    )
    ai_prompt_price: float = Field(
        default=0.0, ge=0, description="`ai.analyze`: price of a million prompt tokens, for the metric of the cost."
    )
    ai_completion_price: float = Field(
        default=0.0, ge=0, description="`ai.analyze`: price of a million completion tokens, in the same currency."
    )
    ai_timeout_seconds: float = Field(
        default=60.0, gt=0.0, le=3600.0, description="`ai.analyze`: how long one answer of the server may take."
    )
    topology: Topology = Field(default=Topology(), exclude=True)
    """Not a variable: what headrace.toml declares, read together with the environment."""

    @model_validator(mode="after")
    def _shows_one_thing_to_nats(self) -> Self:
        if (self.nats_tls_cert_file is None) != (self.nats_tls_key_file is None):
            raise ValueError("HEADRACE_NATS_TLS_CERT_FILE and HEADRACE_NATS_TLS_KEY_FILE need each other")
        has_password, has_file = bool(self.nats_password.get_secret_value()), self.nats_password_file is not None
        if has_password and has_file:
            raise ValueError("HEADRACE_NATS_PASSWORD and HEADRACE_NATS_PASSWORD_FILE: give one of them")
        if bool(self.nats_user) != (has_password or has_file):
            raise ValueError("HEADRACE_NATS_USER needs HEADRACE_NATS_PASSWORD or …_FILE, and they need it")
        if self.nats_user and self.nats_credentials_file is not None:
            raise ValueError("HEADRACE_NATS_USER and HEADRACE_NATS_CREDENTIALS_FILE: give one of them")
        return self

    @model_validator(mode="after")
    def _knows_its_pod(self) -> Self:
        missing = [PREFIX + name.upper() for name in ("pod_name", "pod_namespace") if not getattr(self, name)]
        if self.pod_deletion_cost and missing:
            raise ValueError(f"HEADRACE_POD_DELETION_COST = true needs {' and '.join(missing)} too")
        return self

    @model_validator(mode="after")
    def _knows_its_model(self) -> Self:
        if self.ai_backend == "openai" and not self.ai_model:
            raise ValueError("HEADRACE_AI_BACKEND = openai needs HEADRACE_AI_MODEL too, the model's name on the server")
        return self

    @model_validator(mode="after")
    def _knows_its_certificate_and_key(self) -> Self:
        given = [self.tls_cert_file is not None, self.tls_key_file is not None]
        if any(given) and not all(given):
            raise ValueError(
                "a certificate and its key need each other: set both HEADRACE_TLS_CERT_FILE and HEADRACE_TLS_KEY_FILE"
            )
        if self.tls_client_ca_file is not None and not all(given):
            raise ValueError(
                "clients are asked over TLS only: HEADRACE_TLS_CLIENT_CA_FILE needs HEADRACE_TLS_CERT_FILE too"
            )
        return self


NOT_VARIABLES = frozenset({"topology"})
VARIABLES = {PREFIX + name.upper(): name for name in ServiceSettings.model_fields if name not in NOT_VARIABLES}


def load_settings(
    environ: Mapping[str, str],
    *,
    default_listen: str,
    default_ops_listen: str = "127.0.0.1:0",
    cwd: Path | None = None,
) -> ServiceSettings:
    """The settings of a service from `environ` and headrace.toml (looked for in `cwd`, the working directory).

    Raises SettingsError in one sentence naming the variable or the key, its value and what is allowed.
    """
    given = {
        name: value for name, value in environ.items() if name.startswith(PREFIX) and not _is_kubernetes(name, value)
    }
    unknown = sorted(set(given) - set(VARIABLES))
    if unknown:
        raise SettingsError(_about_unknown(unknown[0]))
    values: dict[str, object] = {"listen": default_listen, "ops_listen": default_ops_listen}
    values |= {VARIABLES[name]: value for name, value in given.items() if value}
    settings = _validated(values)
    topology = load_topology(settings.config, environ, cwd or Path.cwd())
    resolved = {"topology": topology, "broker": topology.broker, "subject_prefix": topology.subject_prefix}
    if "stream_prefix" not in values:
        resolved["stream_prefix"] = topology.subject_prefix.upper()
    return settings.model_copy(update=resolved)


def _validated(values: Mapping[str, object]) -> ServiceSettings:
    try:
        return ServiceSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(explain(error, ServiceSettings, lambda field: PREFIX + field.upper())) from error


def _is_kubernetes(name: str, value: str) -> bool:
    if name in VARIABLES:
        return False
    if KUBERNETES.fullmatch(name):
        return True
    return bool(KUBERNETES_PORT.fullmatch(name) and KUBERNETES_PORT_VALUE.match(value))


def _about_unknown(name: str) -> str:
    # Without the prefix, which makes any two of them alike.
    known = [variable.removeprefix(PREFIX) for variable in VARIABLES]
    closest = difflib.get_close_matches(name.removeprefix(PREFIX), known, n=1, cutoff=0.55)
    hint = f"the closest known one is {PREFIX}{closest[0]}" if closest else "docs/configuration.md has all of them"
    return f"unknown variable {name} in the environment; {hint}"
