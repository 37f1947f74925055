"""How the system and its inference back end are: questions to the parts, each bounded, and answers as messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import headrace
from headrace.v1 import status_pb2
from headrace_core.bus.broker_status import BrokerView, look
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import BusError
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.rpc.convert import timestamp
from headrace_core.rpc.queues import duration, queue_message
from headrace_core.tasks.figures import Figures
from headrace_core.tasks.kinds import ConsumerRow, Inference, live_consumers, read_inference
from headrace_core.tasks.queues import QueueFigures
from status.health import HEALTHY, UNHEALTHY, Parts, judge
from status.probe import Probe, Unanswered

SERVICE = f"headrace {headrace.__version__}"
ARCHITECTURE = (
    "Postgres is the truth, JetStream the dispatcher: a task is committed, then published; consumers claim and settle "
    "it in Postgres, and without a broker they take work straight from there"
)
WITHIN = 1.5
"""Seconds for each part. The parts are asked together, so an answer takes no longer than this in all."""
INFERENCE_SECONDS = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _FromDatabase:
    queues: list[QueueFigures]
    consumers: list[ConsumerRow]


class System:
    """Asks the parts. `bus` is None where the system runs without a broker by choice; `figures` are its owner's."""

    def __init__(self, db: Database, bus: Bus | None, names: StreamNames, figures: Figures) -> None:
        self._db = db
        self._figures = figures
        self._database: Probe[_FromDatabase] = Probe("Postgres", self._ask_database)
        self._inference: Probe[Inference | None] = Probe("Postgres", lambda: read_inference(db))
        self._bus = bus
        self._broker: Probe[BrokerView] | None = None
        if bus is not None:
            connected = bus
            self._broker = Probe("NATS", lambda: look(connected, names))

    async def close(self) -> None:
        """Give up the questions under way."""
        for probe in (self._database, self._inference, self._broker):
            if probe is not None:
                await probe.close()

    async def status(self) -> status_pb2.SystemStatus:
        """How the system is; within 2 s whatever hangs. Never raises for a part that is away."""
        (database, why), broker = await asyncio.gather(_attempt(self._database.read(WITHIN)), self._look())
        parts = Parts(
            database_problem=why,
            queues=database.queues if database else (),
            consumers=database.consumers if database else (),
            broker=broker,
        )
        verdict = judge(parts)
        return status_pb2.SystemStatus(
            health=verdict.health,
            service=SERVICE,
            architecture=ARCHITECTURE,
            mode=verdict.mode,
            problems=verdict.problems,
            has_task_stream=broker is not None and broker.task_stream,
            has_dead_letter_stream=broker is not None and broker.dead_letter_stream,
            has_fallback=verdict.has_fallback,
            queues=[queue_message(figures) for figures in parts.queues],
            consumers=[_consumer_message(consumer) for consumer in parts.consumers],
            time=timestamp(datetime.now(UTC)),
        )

    async def inference(self) -> status_pb2.InferenceStatus:
        """How the inference back end is, as a consumer last saw it; within 2 s whatever hangs. Never raises."""
        seen, why = await _attempt(self._inference.read(WITHIN))
        if why:
            return status_pb2.InferenceStatus(health=UNHEALTHY, last_error=why)
        if seen is None:
            nobody = "no consumer of ai.analyze has ever reported; start one"
            return status_pb2.InferenceStatus(health=UNHEALTHY, last_error=nobody)
        return inference_message(seen, datetime.now(UTC))

    async def _look(self) -> BrokerView | None:
        if self._broker is None or self._bus is None:
            return None
        view, why = await _attempt(self._broker.read(WITHIN))
        return view or _silent(self._bus, why)

    async def _ask_database(self) -> _FromDatabase:
        return _FromDatabase(await self._figures.all(), await live_consumers(self._db))


def _silent(bus: Bus, why: str) -> BrokerView:
    """A broker that did not answer in time. A connection that is still up tells a frozen server, or a cluster without
    its majority, from one that is gone; the bus finds out which within seconds."""
    if not bus.jetstream:
        return BrokerView(connected=bus.connected, problem=bus.problem)
    return BrokerView(
        connected=True,
        problem=f"{why}: its server is frozen or overloaded, or its cluster has lost the majority; bring them back",
    )


async def _attempt(question: Awaitable[T]) -> tuple[T | None, str]:
    """The answer and "", or None and why there is none."""
    try:
        return await question, ""
    except (Unanswered, DatabaseUnavailable, BusError) as error:
        return None, str(error)


def inference_message(seen: Inference, now: datetime) -> status_pb2.InferenceStatus:
    """What a consumer noted; too old a note is no sign of life."""
    found = json.loads(seen.health)
    error = found.get("lastError") or ""
    age = (now - seen.checked_at).total_seconds()
    if age > INFERENCE_SECONDS:
        error = f"no consumer of ai.analyze has reported for {age:.0f} s; {error or 'start one'}"
    latency = found.get("latencyMs")
    return status_pb2.InferenceStatus(
        health=UNHEALTHY if error else HEALTHY,
        backend=found.get("backend") or "",
        model=found.get("model") or "",
        models=found.get("models") or (),
        last_error=error,
        latency=None if latency is None else duration(latency / 1000),
        check_time=timestamp(seen.checked_at),
    )


def _consumer_message(consumer: ConsumerRow) -> status_pb2.ConsumerStatus:
    return status_pb2.ConsumerStatus(
        worker=consumer.worker,
        kinds=consumer.kinds,
        queues=consumer.queues,
        start_time=timestamp(consumer.started_at),
        draining=consumer.draining,
        running=consumer.running,
    )
