"""The nouns of a task's life, as the database and the bus know them. No I/O here.

Named tuples: thousands are made in a second, and a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum, IntEnum, StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple
from uuid import UUID

TASK = -1
"""The unit number of the task itself; for a sharded kind, of its plan."""
MERGE = -2
"""The unit number of a merge. Shards count from 0."""

UnitType = Literal["TASK", "PLAN", "SHARD", "MERGE"]


class TaskState(StrEnum):
    """See TaskState in task.proto."""

    PENDING = "PENDING"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})


class Priority(IntEnum):
    """As in task.proto."""

    LOW = 1
    NORMAL = 2
    HIGH = 3


_LEVELS = {int(priority): priority.name.lower() for priority in Priority}


class UnitId(NamedTuple):
    """Which unit of which task. Ordered: every batch locks its rows in this order."""

    task_id: UUID
    unit: int = TASK


def in_order(unit_id: UnitId) -> tuple[int, int]:
    """The key to sort by: as Postgres orders ids, without the comparisons of UUID, which take a microsecond each."""
    return unit_id.task_id.int, unit_id.unit


class Lease(NamedTuple):
    """The right to write: the unit, the number of its start, and who started it."""

    unit_id: UnitId
    epoch: int
    holder: UUID


class Holder(NamedTuple):
    """A consumer process as it claims: a random id of its start, its name for people, the kinds that it can run."""

    id: UUID
    worker: str
    kinds: tuple[str, ...]
    sharded: tuple[str, ...]
    traced: bool = False
    """Claims bring the trace contexts of the tasks."""


class NewTask(NamedTuple):
    """A validated task, about to be committed. `payload` is UTF-8 JSON text; times are aware UTC."""

    id: UUID
    namespace: str
    kind: str
    queue: str
    payload: bytes
    fingerprint: bytes
    idempotency_key: str | None = None
    labels: Mapping[str, str] = MappingProxyType({})
    priority: Priority = Priority.NORMAL
    run_at: datetime | None = None
    deadline: datetime | None = None
    max_attempts: int = 3
    max_crashes: int = 3
    trace_context: str | None = None
    """As headrace_core.telemetry.spans writes it; None: not traced."""


class TaskRecord(NamedTuple):
    """A task's row, basic view. JSON columns are raw UTF-8 text."""

    id: UUID
    namespace: str
    kind: str
    queue: str
    priority: int
    state: TaskState
    reason: str
    generation: int
    sequence: int
    labels: Mapping[str, str]
    idempotency_key: str | None
    attempt: int
    failures: int
    crashes: int
    interruptions: int
    max_attempts: int
    max_crashes: int
    fraction: float
    message: str
    done_shards: int
    total_shards: int | None
    created_at: datetime
    due_at: datetime
    deadline: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime
    worker: str
    error: bytes | None


class Submitted(NamedTuple):
    """What became of a NewTask. `reused`: its key belongs to a task of another request, which `task` is."""

    task: TaskRecord
    created: bool
    reused: bool = False
    trace_context: str | None = None
    """Of a task that was created."""


class Publication(NamedTuple):
    """An intended publication of a unit. The dispatch number makes the message id: only repeats of it share one."""

    unit_id: UnitId
    queue: str
    priority: int
    resumed: bool
    dispatch: int
    trace_context: str | None = None
    """What the span of the publication belongs to, where it is known; it is no part of the message."""

    @property
    def subject_suffix(self) -> str:
        """`<queue>.<resume|high|normal|low>`."""
        return f"{self.queue}.resume" if self.resumed else f"{self.queue}.{_LEVELS[self.priority]}"

    @property
    def message_id(self) -> str:
        """The Nats-Msg-Id."""
        return self.encoded()[0]

    @property
    def body(self) -> bytes:
        """Ids only: the payload stays in Postgres."""
        return self.encoded()[1]

    def encoded(self) -> tuple[str, bytes]:
        """Message id and body in one go."""
        (task_id, unit), dispatch = self.unit_id, self.dispatch
        task = str(task_id)
        return f"{task}/{unit}/{dispatch}", f'{{"task":"{task}","unit":{unit},"dispatch":{dispatch}}}'.encode()


class Delivered(NamedTuple):
    """A delivery's body, parsed."""

    unit_id: UnitId
    dispatch: int


class Verdict(Enum):
    """What a delivery met (design, rule 5). Everything but CLAIMED means: acknowledge, the row knows what is next."""

    CLAIMED = "claimed"
    NOT_DUE = "not_due"
    LEASED = "leased"
    ENDED = "ended"
    GONE = "gone"
    PAUSED = "paused"
    NO_HANDLER = "no_handler"


class ClaimedUnit(NamedTuple):
    """A unit whose lease this process has just taken. JSON columns are raw UTF-8 text."""

    lease: Lease
    type: UnitType
    kind: str
    queue: str
    namespace: str
    generation: int
    attempt: int
    payload: bytes
    checkpoint: bytes | None
    deadline: datetime | None
    failures: int
    crashes: int
    interruptions: int
    max_attempts: int
    max_crashes: int
    suspect: bool
    trace_context: str | None = None
    """Of its task; None also where the holder traces nothing."""


class Wake(NamedTuple):
    """A live hint: the task has events up to `sequence`. Never the event itself."""

    task_id: UUID
    sequence: int


class Claim(NamedTuple):
    """The answer to one delivery; `unit` only if CLAIMED."""

    unit_id: UnitId
    verdict: Verdict
    unit: ClaimedUnit | None = None


# -- what a consumer asks to be written when an attempt has ended ------------------------------------------------------

Charge = Literal["failure", "crash", "interruption", "none"]


class Complete(NamedTuple):
    """The unit is done; `result` is UTF-8 JSON text."""

    lease: Lease
    result: bytes


class Plan(NamedTuple):
    """The plan is done: these shards (UTF-8 JSON objects), of which `needed` must complete."""

    lease: Lease
    shards: tuple[bytes, ...]
    needed: int


class Reschedule(NamedTuple):
    """The unit goes on in another attempt: a retry, a hand-back, a kind without handler here. `due_in` in seconds."""

    lease: Lease
    due_in: float
    charge: Charge
    reason: str
    error: bytes | None = None
    checkpoint: bytes | None = None


class Fail(NamedTuple):
    """The unit has failed for good; `error` is JSON text {"reason", "type", "message"}."""

    lease: Lease
    charge: Charge
    reason: str
    error: bytes


Settlement = Complete | Plan | Reschedule | Fail


class Settled(NamedTuple):
    """What became of a settlement. Not applied: the lease was lost, so neither ack nor nak."""

    applied: bool
    dead_letter_id: str | None = None


class Settlements(NamedTuple):
    """A settled batch: one answer for each, and what to publish and whom to wake after the commit.

    `failed`: the reasons of the tasks that became FAILED, and so of the dead letters written.
    """

    answers: list[Settled]
    publications: list[Publication]
    wakes: list[Wake]
    failed: Sequence[str] = ()


class Report(NamedTuple):
    """Progress or output of a running unit. `byte_offset` counts UTF-8 bytes within unit and attempt."""

    lease: Lease
    type: Literal["progress", "output"]
    fraction: float = 0.0
    text: str = ""
    byte_offset: int = 0
