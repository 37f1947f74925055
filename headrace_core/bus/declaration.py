"""What streams and durable consumers there should be: pure data, computed from the declared queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

SECOND = 1_000_000_000  # JetStream counts durations in nanoseconds
LEVELS = ("resume", "high", "normal", "low")
"""The order in which a consumer pulls: what has started first, then by priority."""

MAX_DELIVER = 3
MAX_ACK_PENDING = 20_000
DUPLICATE_WINDOW_SECONDS = 10
MAX_MESSAGES_PER_SUBJECT = 100_000
ADVISORY_ACK_WAIT_SECONDS = 10
MEBIBYTE = 1024 * 1024
ADVISORY_DURABLE = "relay"
"""The durable by which the relays of all producers share the advisories."""
NEVER_UPDATED = ("retention", "storage")
"""Fields of a stream that the server refuses to change."""


class Queue(Protocol):
    """What of a queue's settings the broker needs to know."""

    @property
    def name(self) -> str:
        """`[a-z0-9_-]{1,64}`."""

    @property
    def ack_wait(self) -> float:
        """Seconds without a sign of life before a message is delivered again."""


@dataclass(frozen=True, slots=True)
class StreamNames:
    """The names on the broker. `prefix` begins the streams' names, `subjects` the subjects."""

    prefix: str = "HEADRACE"
    subjects: str = "headrace"

    @property
    def tasks(self) -> str:
        """The stream of work to do."""
        return f"{self.prefix}_TASKS"

    @property
    def dead_letters(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}_DLQ"

    @property
    def advisories(self) -> str:
        """The stream that captures the server's advisories about the task stream."""
        return f"{self.prefix}_ADVISORIES"

    @property
    def wake_subject(self) -> str:
        """Core NATS: tasks that have new events."""
        return f"{self.subjects}.events.wake"

    @property
    def cancel_subject(self) -> str:
        """Core NATS: tasks that have been cancelled."""
        return f"{self.subjects}.control.cancel"

    def task_subject(self, suffix: str) -> str:
        """Return the subject for `<queue>.<level>`, which is a publication's `subject_suffix`."""
        return f"{self.subjects}.tasks.{suffix}"

    def dead_letter_subject(self, queue: str, dead_letter_id: str) -> str:
        """Return the subject of one dead letter."""
        return f"{self.subjects}.dlq.{queue}.{dead_letter_id}"


@dataclass(frozen=True, slots=True)
class Durable:
    """A durable pull consumer, with the fields of its configuration that are ours to decide."""

    name: str
    stream: str
    config: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream, with the fields of its configuration that are ours to decide."""

    name: str
    config: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Declaration:
    """Everything that should exist."""

    names: StreamNames
    streams: tuple[Stream, ...]
    durables: tuple[Durable, ...]


def durable_name(queue: str, level: str) -> str:
    """Return the name of the durable consumer of one level of a queue."""
    return f"{queue}-{level}"


def declared(queues: Iterable[Queue], names: StreamNames | None = None) -> Declaration:
    """Return what the broker should hold for `queues`: three streams, a durable for each queue and level, and one more
    for the advisories."""
    names = names or StreamNames()
    durables = (_durable(names, queue, level) for queue in queues for level in LEVELS)
    streams = (_tasks(names), _dead_letters(names), _advisories(names))
    return Declaration(names, streams, (*durables, _advisory_durable(names)))


def _stream(name: str, subjects: list[str], **config: Any) -> Stream:
    fixed = {"name": name, "subjects": subjects, "storage": "file", "duplicate_window": 0, "max_age": 0}
    window = {"duplicate_window": DUPLICATE_WINDOW_SECONDS * SECOND}
    return Stream(name, fixed | window | config)


def _tasks(names: StreamNames) -> Stream:
    return _stream(
        names.tasks,
        [names.task_subject("*.*")],
        retention="workqueue",
        discard="new",
        # One level of one queue can be full while the others go on. Without the second field the oldest is dropped.
        max_msgs_per_subject=MAX_MESSAGES_PER_SUBJECT,
        discard_new_per_subject=True,
        max_msgs=4_000_000,
        max_bytes=1024 * MEBIBYTE,  # about 250 bytes a message, its id and the server's share included
        max_msg_size=4096,
    )


def _dead_letters(names: StreamNames) -> Stream:
    return _stream(
        names.dead_letters,
        [names.dead_letter_subject("*", "*")],
        retention="limits",
        discard="new",
        # A dead letter has a subject of its own: published twice, it is there once.
        max_msgs_per_subject=1,
        discard_new_per_subject=True,
        max_msgs=1_000_000,
        max_bytes=1024 * MEBIBYTE,
        max_msg_size=64 * 1024,
        allow_direct=True,
    )


def _advisories(names: StreamNames) -> Stream:
    advisory = "$JS.EVENT.ADVISORY.CONSUMER"
    return _stream(
        names.advisories,
        [f"{advisory}.MAX_DELIVERIES.{names.tasks}.>", f"{advisory}.MSG_TERMINATED.{names.tasks}.>"],
        retention="workqueue",
        discard="old",  # hints to look at a row; the reconciler finds the row without them
        max_msgs=100_000,
        max_bytes=64 * MEBIBYTE,
    )


def _durable(names: StreamNames, queue: Queue, level: str) -> Durable:
    name = durable_name(queue.name, level)
    config = {
        "durable_name": name,
        "filter_subject": names.task_subject(f"{queue.name}.{level}"),
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": round(queue.ack_wait * SECOND),
        "max_deliver": MAX_DELIVER,
        "max_ack_pending": MAX_ACK_PENDING,
    }
    return Durable(name, names.tasks, config)


def _advisory_durable(names: StreamNames) -> Durable:
    config = {
        "durable_name": ADVISORY_DURABLE,
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": ADVISORY_ACK_WAIT_SECONDS * SECOND,
        "max_ack_pending": 1000,
    }
    return Durable(ADVISORY_DURABLE, names.advisories, config)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return where `found` (a configuration as the server tells it) is not as `wanted`: "max_deliver is 5, not 3"."""
    return [
        f"{key} is {_shown(key, found.get(key, _absent(value)))}, not {_shown(key, value)}"
        for key, value in wanted.items()
        if found.get(key, _absent(value)) != value
    ]


def _absent(value: Any) -> Any:
    """What the server means by leaving a field out: the zero of its type."""
    return type(value)()


def _shown(key: str, value: Any) -> str:
    if key in ("ack_wait", "duplicate_window", "max_age"):
        return f"{value / SECOND:g} s"
    return str(value)
