"""A finished run as plain values: what the checker works on. Nothing here does anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASK = -1
MERGE = -2
# The watch by label, of one task: it is noted as a watch of each task that it shows.
LABEL_WATCH = "label/"
TERMINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "EXPIRED"})


@dataclass(frozen=True, slots=True)
class Note:
    """A record of a client's history, or of the faults. Times are seconds since 1970."""

    at: float
    client: str
    what: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """A field of the record."""
        return self.fields.get(name, default)


@dataclass(frozen=True, slots=True)
class LedgerNote:
    """A record that a handler wrote. `unit` as in the rows: -1 the task or its plan, -2 the merge, else the shard."""

    at: float
    what: str
    task: str
    unit: int
    epoch: int
    attempt: int
    worker: str
    pid: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unit:
    """A row of headrace_core.units. JSON is parsed; absent times are None."""

    task: str
    unit: int
    kind: str
    state: str
    generation: int = 1
    queue: str = "default"
    namespace: str = "default"
    key: str | None = None
    reason: str = ""
    epoch: int = 0
    worker: str = ""
    held: bool = False
    attempt: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    dispatch: int = 1
    sequence: int = 0
    result: Any = None
    error: Any = None
    total_shards: int | None = None
    needed_shards: int | None = None
    done_shards: int = 0
    planned_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A row of headrace_core.events."""

    task: str
    sequence: int
    generation: int
    unit: int
    type: str
    state: str | None = None
    reason: str = ""
    terminal: bool = False
    attempt: int = 0
    plan: bool = False
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of headrace_core.attempts: one that ended without completing its unit, or that a redrive kept."""

    task: str
    unit: int
    generation: int
    attempt: int
    epoch: int
    worker: str
    outcome: str
    reason: str = ""
    started_at: float | None = None
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row of headrace_core.dead_letters. `task` is None for a message that was no task."""

    id: str
    task: str | None
    generation: int
    queue: str
    reason: str
    resolution: str = ""
    published: bool = True
    removed: bool = False


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """A message of the DLQ stream. `id` is the dead letter's, from the subject; `reason` from the headers."""

    id: str
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that is known about a run after it has settled.

    `stream` is None where there is no broker to read. Histories are in the order of their times; each client's records
    keep the order in which it wrote them.
    """

    history: tuple[Note, ...] = ()
    faults: tuple[Note, ...] = ()
    ledger: tuple[LedgerNote, ...] = ()
    units: tuple[Unit, ...] = ()
    events: tuple[Event, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    dead_letters: tuple[DeadLetter, ...] = ()
    stream: tuple[StreamEntry, ...] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `checked` counts what it looked at; a check that looked at nothing has proven nothing."""

    promise: str
    name: str
    checked: int
    violations: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found, though perhaps nothing was looked at either."""
        return not self.violations
