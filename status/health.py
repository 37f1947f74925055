"""How the system is, judged from what its parts said. Pure: the questions are asked in system.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace.v1 import status_pb2
from headrace_core.bus.broker_status import BrokerView
from headrace_core.tasks.kinds import ConsumerRow
from headrace_core.tasks.queues import QueueFigures

Health: TypeAlias = status_pb2.HealthState.ValueType
HEALTHY = status_pb2.HEALTH_STATE_HEALTHY
DEGRADED = status_pb2.HEALTH_STATE_DEGRADED
UNHEALTHY = status_pb2.HEALTH_STATE_UNHEALTHY


@dataclass(frozen=True, slots=True)
class Parts:
    """What the parts said. `database_problem`: Postgres does not answer, and why; then there are no figures and no
    consumers. `broker` is None where the system runs without one by choice."""

    database_problem: str = ""
    queues: Sequence[QueueFigures] = ()
    consumers: Sequence[ConsumerRow] = ()
    broker: BrokerView | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement: the worst of the parts that matter, with a sentence for everything that is wrong."""

    health: Health
    mode: status_pb2.DispatchMode.ValueType
    has_fallback: bool
    problems: list[str] = field(default_factory=list)


def judge(parts: Parts) -> Verdict:
    """UNHEALTHY: tasks can be neither accepted nor run. DEGRADED: they can, and something is missing."""
    fatal = _fatal(parts)
    working = [consumer for consumer in parts.consumers if not consumer.draining]
    cut_off = [consumer.worker for consumer in working if consumer.mode == "fallback"]
    minor = [*_broker_problems(parts.broker, cut_off), *_queue_problems(parts)]
    return Verdict(
        health=UNHEALTHY if fatal else DEGRADED if minor else HEALTHY,
        mode=_mode(parts.broker, cut_off),
        has_fallback=not parts.database_problem and bool(working),
        problems=[*fatal, *minor],
    )


def _fatal(parts: Parts) -> list[str]:
    if parts.database_problem:
        return [
            f"{parts.database_problem}: tasks can be neither accepted, run nor read; "
            "bring Postgres back, or correct HEADRACE_DATABASE_URL"
        ]
    if not parts.consumers:
        return ["no consumer has reported in the last 15 s: tasks are accepted and wait; start a consumer"]
    if all(consumer.draining for consumer in parts.consumers):
        return ["every consumer is stopping: tasks are accepted and wait; start a consumer"]
    return []


def _broker_problems(broker: BrokerView | None, cut_off: Sequence[str]) -> list[str]:
    """What keeps work from the broker: what is seen from here, else what those consumers see that are in fallback."""
    if broker is None:
        return []
    if _works(broker):
        said = [broker.problem] if broker.problem else []
        return [*said, *([_said_by_consumers(cut_off)] if cut_off else [])]
    why = broker.problem or "it did not say why"
    if not broker.connected:
        return [f"NATS is away ({why}): work travels through Postgres meanwhile; bring NATS back"]
    if not broker.jetstream:
        return [f"JetStream is of no use ({why}): work travels through Postgres meanwhile"]
    return [f"streams are missing ({why}): work travels through Postgres; run: headrace topology apply"]


def _said_by_consumers(cut_off: Sequence[str]) -> str:
    named = ", ".join(cut_off[:3]) + (" and others" if len(cut_off) > 3 else "")
    return (
        f"consumers take work from Postgres, as they do not get it from the broker ({named}): this passes within "
        "seconds after an outage; else look at their connection, rights and logs"
    )


def _queue_problems(parts: Parts) -> list[str]:
    pulled = {queue for consumer in parts.consumers if not consumer.draining for queue in consumer.queues}
    problems: list[str] = []
    for queue in parts.queues:
        settings = queue.settings
        if queue.backlog and parts.consumers and settings.name not in pulled and queue.paused_at is None:
            problems.append(f"queue {settings.name}: {queue.backlog} tasks are due and no consumer pulls it; start one")
        if queue.backlog + queue.delayed >= settings.max_backlog:
            problems.append(
                f"queue {settings.name}: max_backlog ({settings.max_backlog}) is reached and submits are refused; "
                "add consumers, purge, or raise it"
            )
        if queue.dead_letters >= settings.max_dead_letters:
            problems.append(
                f"queue {settings.name}: max_dead_letters ({settings.max_dead_letters}) is reached and submits are "
                "refused; redrive or discard some"
            )
    return problems


def _works(broker: BrokerView) -> bool:
    return broker.connected and broker.jetstream and broker.task_stream and broker.dead_letter_stream


def _mode(broker: BrokerView | None, cut_off: Sequence[str]) -> status_pb2.DispatchMode.ValueType:
    if broker is None:
        return status_pb2.DISPATCH_MODE_POSTGRES
    if broker.connected and broker.jetstream and broker.task_stream and not cut_off:
        return status_pb2.DISPATCH_MODE_BROKER
    return status_pb2.DISPATCH_MODE_FALLBACK


def word(health: Health) -> str:
    """`healthy`, `degraded` or `unhealthy`, as the HTTP side says it."""
    return status_pb2.HealthState.Name(health).removeprefix("HEALTH_STATE_").lower()
