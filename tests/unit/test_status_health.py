"""The judgement about the system: what is fatal, what is missing, and that every problem is said."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from headrace.v1 import status_pb2
from headrace_core.bus.broker_status import BrokerView
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.kinds import ConsumerRow, Inference
from headrace_core.tasks.queues import QueueFigures
from status.health import DEGRADED, HEALTHY, UNHEALTHY, Parts, judge
from status.system import inference_message
from status.web.app import inference_json, system_json

CONSUMER = ConsumerRow(UUID(int=1), "host/1", ["echo"], ["default"])
STOPPING = ConsumerRow(UUID(int=2), "host/2", ["echo"], ["default"], draining=True)
BROKER = BrokerView(connected=True, jetstream=True, task_stream=True, dead_letter_stream=True)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queue(name: str = "default", **figures: int) -> QueueFigures:
    limits = QueueSettings(name=name, max_backlog=100, max_dead_letters=10)
    facts: dict[str, int] = {"backlog": 0, "delayed": 0, "in_flight": 0, "dead_letters": 0}
    return QueueFigures(limits, None, oldest_age=0.0, submit_rate=0.0, finish_rate=0.0, **(facts | figures))


def test_a_system_with_everything_is_healthy() -> None:
    verdict = judge(Parts(queues=[queue(backlog=5)], consumers=[CONSUMER, STOPPING], broker=BROKER))
    assert (verdict.health, verdict.problems) == (HEALTHY, [])
    assert verdict.mode == status_pb2.DISPATCH_MODE_BROKER
    assert verdict.has_fallback


def test_without_a_broker_by_choice_nothing_is_missing() -> None:
    verdict = judge(Parts(consumers=[CONSUMER], broker=None))
    assert (verdict.health, verdict.mode) == (HEALTHY, status_pb2.DISPATCH_MODE_POSTGRES)


@pytest.mark.parametrize(
    ("broker", "word", "mode"),
    [
        (BrokerView(connected=False, problem="refused"), "refused", status_pb2.DISPATCH_MODE_FALLBACK),
        (BrokerView(connected=True, problem="no rights"), "JetStream", status_pb2.DISPATCH_MODE_FALLBACK),
        (
            BrokerView(connected=True, jetstream=True, dead_letter_stream=True, problem="missing: HEADRACE_TASKS"),
            "HEADRACE_TASKS",
            status_pb2.DISPATCH_MODE_FALLBACK,
        ),
        (
            BrokerView(connected=True, jetstream=True, task_stream=True, problem="missing: HEADRACE_DLQ"),
            "topology apply",
            status_pb2.DISPATCH_MODE_BROKER,
        ),
    ],
)
def test_a_broker_that_lacks_something_degrades(
    broker: BrokerView, word: str, mode: status_pb2.DispatchMode.ValueType
) -> None:
    verdict = judge(Parts(consumers=[CONSUMER], broker=broker))
    assert (verdict.health, verdict.mode) == (DEGRADED, mode)
    (problem,) = verdict.problems
    assert word in problem


def test_without_postgres_nothing_works() -> None:
    verdict = judge(Parts(database_problem="Postgres did not answer within 1.5 s", broker=BROKER))
    assert (verdict.health, verdict.has_fallback) == (UNHEALTHY, False)
    assert "Postgres did not answer within 1.5 s" in verdict.problems[0]


@pytest.mark.parametrize("consumers", [[], [STOPPING]])
def test_without_a_working_consumer_nothing_runs(consumers: list[ConsumerRow]) -> None:
    verdict = judge(Parts(consumers=consumers, broker=BROKER))
    assert (verdict.health, verdict.has_fallback, len(verdict.problems)) == (UNHEALTHY, False, 1)


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        (queue("other", backlog=3), "no consumer pulls it"),
        (queue(backlog=60, delayed=40), "max_backlog"),
        (queue(dead_letters=10), "max_dead_letters"),
    ],
)
def test_a_queue_in_trouble_degrades(figures: QueueFigures, word: str) -> None:
    verdict = judge(Parts(queues=[figures], consumers=[CONSUMER], broker=BROKER))
    assert verdict.health == DEGRADED
    assert word in verdict.problems[0]


def test_the_http_answer_has_the_documented_shape() -> None:
    healthy = status_pb2.SystemStatus(
        health=HEALTHY,
        service="headrace 1",
        architecture="a",
        mode=status_pb2.DISPATCH_MODE_BROKER,
        has_task_stream=True,
        has_dead_letter_stream=True,
    )
    answer = system_json(healthy)
    assert answer["status"] == "healthy"
    assert answer["mode"] == "broker"
    assert answer["queueCheck"] == {"hasTaskStream": True, "hasDeadLetterStream": True, "hasFallback": False}
    assert "problems" not in answer


def inference(age: float, **health: object) -> status_pb2.InferenceStatus:
    import json  # noqa: PLC0415

    known = {"backend": "embedded", "model": "m", "models": ["m"], "latencyMs": 12.5, "lastError": None}
    seen = Inference(json.dumps(known | health).encode(), NOW - timedelta(seconds=age))
    return inference_message(seen, NOW)


def test_inference_is_well_if_it_answered_lately() -> None:
    found = inference(age=59)
    assert found.health == HEALTHY
    assert inference_json(found) == {
        "status": "healthy",
        "service": "ai.analyze",
        "backend": "embedded",
        "model": "m",
        "models": ["m"],
        "lastError": None,
        "latencyMs": 12.5,
        "checkedAt": "2025-12-31T23:59:01Z",
    }


def test_inference_is_not_well_after_an_error_or_a_silence() -> None:
    assert inference(age=1, lastError="refused", latencyMs=None).last_error == "refused"
    assert inference(age=1, lastError="refused").health == UNHEALTHY
    silent = inference(age=61)
    assert silent.health == UNHEALTHY
    assert "61 s" in silent.last_error
