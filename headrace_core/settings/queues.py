"""headrace.toml: the declared queues with their limits, and how work travels between the services."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headrace_core.settings.duration import Seconds
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.explain import explain

FILE_NAME = "headrace.toml"
DEFAULT_QUEUE = "default"
QUEUE_NAME = r"^[a-z0-9_-]{1,64}$"
SUBJECT_PREFIX = r"^[a-zA-Z0-9_-]{1,32}$"
BrokerChoice = Literal["nats", "none"]


class _Declared(BaseModel):
    """A table of the file: unknown keys, numbers as text and NaN are mistakes of the writer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Backoff(_Declared):
    """The wait after a handler failure: initial * factor^(failures - 1), at most maximum, spread by jitter."""

    initial: Seconds = Field(default=1.0, ge=0.0, le=86400.0, description="Wait after the first failure.")
    maximum: Seconds = Field(default=300.0, ge=0.0, le=86400.0, description="Longest wait; at least `initial`.")
    factor: float = Field(
        default=2.0, ge=1.0, le=100.0, description="What each further failure multiplies the wait by."
    )
    jitter: float = Field(
        default=0.2, ge=0.0, le=1.0, description="Share of the wait by which it is spread, both ways."
    )

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.maximum < self.initial:
            raise ValueError(
                f"backoff.maximum ({self.maximum:g} s) must be at least backoff.initial ({self.initial:g} s)"
            )
        return self

    def delay(self, failures: int, jitter: float) -> float:
        """See `backoff_delay`."""
        return backoff_delay(self, failures, jitter)


def backoff_delay(backoff: Backoff, failures: int, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure (from 1). `jitter` in [-1, 1] chooses the place in the spread."""
    steps = min(max(failures, 1) - 1, 100)
    return min(backoff.maximum, backoff.initial * backoff.factor**steps) * (1.0 + backoff.jitter * jitter)


class QueueSettings(_Declared):
    """A queue and its limits. Durations are seconds, or texts like "5s", "250ms", "5m"."""

    name: str = Field(pattern=QUEUE_NAME, description="Unique; `[a-z0-9_-]`, at most 64 characters.")
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Handler failures before a task is dead-lettered, unless the task says otherwise.",
    )
    max_crashes: int = Field(
        default=3, ge=1, le=100, description="Crashes of its process before a unit is quarantined as a dead letter."
    )
    ack_wait: Seconds = Field(
        default=5.0,
        ge=0.5,
        le=3600.0,
        description="How long JetStream waits for a sign of life of a delivery. A lease is twice this.",
    )
    backoff: Backoff = Field(default=Backoff(), description="The wait between attempts.")
    max_batch_size: int = Field(default=16, ge=1, le=1000, description="Inputs in one call of a batch handler.")
    max_batch_timeout: Seconds = Field(
        default=0.1, ge=0.0, le=60.0, description="How long a batch waits to fill, from its first input."
    )
    max_concurrency: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Units at once per consumer process; 0: 64 async, 8 in threads, as many processes as cores.",
    )
    max_backlog: int = Field(
        default=1_000_000,
        ge=1,
        le=1_000_000_000,
        description="Tasks waiting for their first start at which submits are refused (BACKLOG_FULL).",
    )
    rate_limit: float = Field(
        default=0.0, ge=0.0, le=1_000_000.0, description="Starts per second per consumer process; 0: no limit."
    )
    max_dead_letters: int = Field(
        default=100_000,
        ge=1,
        le=1_000_000_000,
        description="Open dead letters at which submits are refused (DEAD_LETTERS_FULL).",
    )

    @property
    def lease(self) -> float:
        """Seconds for which a lease holds without a renewal: 2 * ack_wait."""
        return 2.0 * self.ack_wait


class NamespaceSettings(_Declared):
    """A namespace and its quotas."""

    name: str = Field(pattern=QUEUE_NAME, description="Unique; `[a-z0-9_-]`, at most 64 characters.")
    rate_limit: float = Field(
        default=0.0,
        ge=0.0,
        le=1_000_000.0,
        description="Tasks accepted per second and producer process, with a second's worth at once; 0: no limit.",
    )
    max_backlog: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Tasks of the namespace waiting for their first start at which submits are refused "
        "(QUOTA_EXCEEDED); 0: no limit.",
    )
    max_watches: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Watch streams open at once per status process; 0: no limit.",
    )


class Topology(_Declared):
    """What headrace.toml declares, completed: queue `default` always exists."""

    queues: dict[str, QueueSettings] = Field(default_factory=dict)
    namespaces: dict[str, NamespaceSettings] = Field(default_factory=dict)
    """The declared ones. If there are any, only they and `default` exist."""
    broker: BrokerChoice = "nats"
    subject_prefix: str = Field(default="headrace", pattern=SUBJECT_PREFIX)
    source: Path | None = None
    """The file it was read from; None: there is none, and everything has its default."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self.queues.setdefault(DEFAULT_QUEUE, QueueSettings(name=DEFAULT_QUEUE))
        return self

    def with_queues(self, names: Iterable[str]) -> "Topology":
        """This topology and a queue with defaults for each name that it does not declare (HEADRACE_CREATE_QUEUES).

        Raises SettingsError for a name that no queue can have.
        """
        queues = dict(self.queues)
        for name in names:
            queues.setdefault(name, _queue_of({"name": name}, f"queue {name!r}"))
        return self.model_copy(update={"queues": queues})


class TopLevel(_Declared):
    """The top level of headrace.toml."""

    broker: BrokerChoice = Field(default="nats", description="`none`: Postgres alone, no NATS at all.")
    subject_prefix: str = Field(
        default="headrace",
        pattern=SUBJECT_PREFIX,
        description="First token of every NATS subject; one for each installation.",
    )
    queues: list[dict[str, Any]] = Field(default_factory=list, description="The declared queues, `[[queues]]`.")
    namespaces: list[dict[str, Any]] = Field(
        default_factory=list,
        description="The declared namespaces, `[[namespaces]]`; none: every name is one.",
    )


def load_topology(path: Path | None, environ: Mapping[str, str], cwd: Path) -> Topology:
    """The topology of `path`, or of HEADRACE_CONFIG, or of headrace.toml in `cwd`, or the defaults, in this order.

    HEADRACE_BROKER and HEADRACE_SUBJECT_PREFIX in `environ` override the file. A file that was named must exist.
    Raises SettingsError naming file, key, value and what is allowed.
    """
    source = _find(path, environ, cwd)
    table = _read(source) if source else {}
    for key in ("broker", "subject_prefix"):
        if value := environ.get(f"HEADRACE_{key.upper()}"):
            table[key] = value
    return _topology_of(table, source)


def _find(path: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    named = path or (Path(environ["HEADRACE_CONFIG"]) if environ.get("HEADRACE_CONFIG") else None)
    if named is not None:
        return named if named.is_absolute() else cwd / named
    here = cwd / FILE_NAME
    return here if here.is_file() else None


def _read(source: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{source} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise SettingsError(f"{source} is no TOML: {error}") from error


def _topology_of(table: Mapping[str, Any], source: Path | None) -> Topology:
    where = str(source or "the environment")
    try:
        file = TopLevel.model_validate(table)
    except ValidationError as error:
        raise SettingsError(f"{where}: {explain(error, TopLevel)}") from error
    queues: dict[str, QueueSettings] = {}
    for number, declared in enumerate(file.queues, start=1):
        queue = _queue_of(declared, f"{where}: queue {declared.get('name', f'number {number}')}")
        if queue.name in queues:
            raise SettingsError(f"{where}: queue {queue.name} is declared twice; names must be unique")
        queues[queue.name] = queue
    return Topology(
        queues=queues,
        namespaces=_namespaces_of(file.namespaces, where),
        broker=file.broker,
        subject_prefix=file.subject_prefix,
        source=source,
    )


def _namespaces_of(tables: Iterable[Mapping[str, Any]], where: str) -> dict[str, NamespaceSettings]:
    found: dict[str, NamespaceSettings] = {}
    for number, table in enumerate(tables, start=1):
        try:
            namespace = NamespaceSettings.model_validate(table)
        except ValidationError as error:
            name = table.get("name", f"number {number}")
            raise SettingsError(f"{where}: namespace {name}: {explain(error, NamespaceSettings)}") from error
        if namespace.name in found:
            raise SettingsError(f"{where}: namespace {namespace.name} is declared twice; names must be unique")
        found[namespace.name] = namespace
    return found


def _queue_of(declared: Mapping[str, Any], where: str) -> QueueSettings:
    try:
        return QueueSettings.model_validate(declared)
    except ValidationError as error:
        raise SettingsError(f"{where}: {explain(error, QueueSettings)}") from error
