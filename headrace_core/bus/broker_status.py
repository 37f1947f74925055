"""What the broker looks like from here: for the system status and for scaling by backlog."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import LEVELS, StreamNames
from headrace_core.bus.errors import BusError, StreamMissing
from headrace_core.bus.topology import consumers, stream_info

# A leader hears of its replicas every second. One that has lost them goes on answering for up to 20 s.
SILENT_REPLICA_NANOSECONDS = 2_500_000_000


@dataclass(frozen=True, slots=True)
class QueueView:
    """Messages of one queue, all levels: not delivered yet, and delivered but not acknowledged."""

    pending: int = 0
    ack_pending: int = 0


@dataclass(frozen=True, slots=True)
class BrokerView:
    """The broker's state; `problem` is a sentence, empty when all is well."""

    connected: bool
    jetstream: bool = False
    task_stream: bool = False
    dead_letter_stream: bool = False
    dead_letters: int = 0
    queues: dict[str, QueueView] = field(default_factory=dict)
    problem: str = ""


async def look(bus: Bus, names: StreamNames) -> BrokerView:
    """Ask the broker for its state. Never raises for the bus: what could not be learned is in `problem`."""
    if not bus.jetstream:
        return BrokerView(connected=bus.connected, problem=bus.problem)
    try:
        tasks = await _stream_or_none(bus, names.tasks)
        letters = await _stream_or_none(bus, names.dead_letters)
        found = {} if tasks is None else await consumers(bus, names.tasks)
    except BusError as error:
        return BrokerView(connected=bus.connected, jetstream=bus.jetstream, problem=error.message)
    if alone := without_majority(found):
        return BrokerView(connected=True, problem=alone)
    return BrokerView(
        connected=True,
        jetstream=True,
        task_stream=tasks is not None,
        dead_letter_stream=letters is not None,
        dead_letters=0 if letters is None else letters["state"]["messages"],
        queues=_by_queue(found),
        problem=_missing(names, tasks, letters) or bus.denied,
    )


def without_majority(found: Mapping[str, Mapping[str, Any]], durables: Iterable[str] | None = None) -> str:
    """Which of the consumers `found` (of `durables`; None: all) have lost most of their replicas, as a sentence.

    Empty: none. Such a consumer answers and takes nothing.
    """
    wanted = found if durables is None else [name for name in durables if name in found]
    alone = sorted(name for name in wanted if not _has_majority(found[name]))
    if not alone:
        return ""
    return f"the cluster has lost its majority for {', '.join(alone[:4])}: bring its servers back"


def _has_majority(info: Mapping[str, Any]) -> bool:
    replicas = (info.get("cluster") or {}).get("replicas") or []
    heard = [
        replica
        for replica in replicas
        if not replica.get("offline") and replica.get("active", 0) < SILENT_REPLICA_NANOSECONDS
    ]
    return 2 * (len(heard) + 1) > len(replicas) + 1


async def _stream_or_none(bus: Bus, stream: str) -> dict[str, Any] | None:
    try:
        return await stream_info(bus, stream)
    except StreamMissing:
        return None


def _missing(names: StreamNames, tasks: object, letters: object) -> str:
    missing = [name for name, info in ((names.tasks, tasks), (names.dead_letters, letters)) if info is None]
    return f"missing: {', '.join(missing)}; run: headrace topology apply" if missing else ""


def _by_queue(found: dict[str, dict[str, Any]]) -> dict[str, QueueView]:
    queues: dict[str, QueueView] = {}
    for name, info in found.items():
        queue, _, level = name.rpartition("-")
        if level in LEVELS:
            before = queues.get(queue, QueueView())
            queues[queue] = QueueView(
                before.pending + info["num_pending"], before.ack_pending + info["num_ack_pending"]
            )
    return queues
