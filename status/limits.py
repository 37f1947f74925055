"""The bounds and intervals of watching and of scaling, in one place."""

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


class WakeLike(Protocol):
    """A hint that a task has events up to `sequence`, whoever made it."""

    @property
    def task_id(self) -> UUID:
        """The task."""

    @property
    def sequence(self) -> int:
        """Its last event."""


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Times in seconds. The defaults are what the service runs with; tests shrink them."""

    heartbeat: float = 15.0
    """Silence after which a stream gets a sign of life."""
    sweep: float = 2.0
    """Every open watch is read again this often: no lost wake costs more."""
    sweep_without_bus: float = 0.5
    """The same while no wakes can arrive."""
    max_watches: int = 20_000
    """Streams at once in this process."""
    max_filter_watches: int = 256
    """Of these, streams that follow a filter: each costs queries of its own."""
    max_tasks: int = 200_000
    """Watched tasks in this process, each counted once."""
    topic_events: int = 1_000
    """Events of a task kept for watchers that have not taken them yet; further behind means a gap."""
    topic_bytes: int = 1024 * 1024
    """The same in bytes: output chunks are large."""
    buffered_bytes: int = 256 * 1024 * 1024
    """Events of all tasks kept, in bytes."""
    read_events: int = 2_000
    """Rows in one read."""
    read_events_per_task: int = 500
    read_tasks: int = 5_000
    """Tasks asked for in one read."""
    collect: float = 0.004
    """A read that follows a large one within this time waits for others to join it."""
    crowd: int = 20
    """Tasks in one read from which on the next one waits for company. Fewer cost less than the wait would annoy."""
    filter_tasks: int = 10_000
    """Unfinished tasks that a filter watch begins with, the newest."""
    discover: float = 0.05
    """How long ids of unknown tasks are collected before a filter watch asks whether they match."""
    recent: float = 15.0
    """How far back a filter watch looks for tasks whose wakes were lost: a submit in doubt (5 s) and clocks apart."""
    remembered: int = 100_000
    """Tasks that a filter watch remembers as ended or not matching."""


@dataclass(frozen=True, slots=True)
class ScalingLimits:
    """Times in seconds. The defaults are what the service runs with; tests change them."""

    look: float = 1.0
    """While a stream of the scaler is open, its state is looked at this often: no lost wake costs more."""
    gap: float = 0.05
    """Between two looks at least, whatever wakes arrive."""
    max_streams: int = 1_000
    """Streams at once in this process: KEDA opens one for each trigger."""
    stream: float = float("inf")
    """A stream ends, with OK, after this long. Shorter than what is left to it where connections end for their age."""
    gauges: float = 5.0
    """The gauges of the queues are renewed this often."""
    gauges_last: float = 15.0
    """A gauge that could not be renewed for so long is removed."""
