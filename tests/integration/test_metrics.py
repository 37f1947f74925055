"""Metrics of what is rare, each brought about on real servers, and labels under hostile input."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from consumer.announcing import MAX_WAITING, Announcer
from consumer.builtin.ai.openai_backend import OpenAIBackend
from consumer.builtin.ai.settings import AISettings
from consumer.reporting import LeaseLost, Reporter
from headrace.handlers import RetryAfter
from headrace.v1 import producer_pb2
from headrace_core.db.pool import Database
from headrace_core.errors import DomainError
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.cancel import cancel
from headrace_core.tasks.model import Complete, Wake
from headrace_core.tasks.publication import take_unpublished
from headrace_core.tasks.queues import declare
from headrace_core.tasks.settle import settle
from headrace_core.telemetry import metrics
from tests.factories import a_holder, claimed, submitted
from tests.fixtures.waiting import eventually
from tests.integration.inference_server import DOCUMENT, KEY, REPLY, Exchange, InferenceServer
from tests.integration.test_ai_openai import run_one_shard
from tests.producer_harness import refused, running_producer


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"headrace_{name}", labels) or 0.0


def label_values(name: str, label: str) -> set[str]:
    """The values that a label has had so far in this process."""
    (metric,) = [each.metric for each in metrics.CATALOGUE if each.metric is getattr(metrics, name)]
    return {sample.labels[label] for family in metric.collect() for sample in family.samples}


def reasons() -> set[str]:
    found, left = set(), [DomainError]
    while left:
        left += (each := left.pop()).__subclasses__()
        found.add(each.reason)
    return found


# -- labels ------------------------------------------------------------------------------------------------------------
async def test_refusals_are_counted_by_reason_whatever_clients_write(database_url: str) -> None:
    before = {
        reason: value("submits_refused_total", reason=reason, queue="") for reason in ("UNKNOWN_KIND", "UNKNOWN_QUEUE")
    }
    async with running_producer(database_url) as producer:
        for number in range(20):
            assert (await refused(producer.submit(kind=f"hostile-{number}"))).reason == "UNKNOWN_KIND"
            assert (await refused(producer.submit(queue=f"hostile-{number}"))).reason == "UNKNOWN_QUEUE"
        await refused(producer.submit(kind='"} 1\nheadrace_fake 1'))
        batch = producer_pb2.SubmitTasksRequest(
            requests=[producer_pb2.SubmitTaskRequest(kind="hostile-batch", queue="hostile-batch")] * 30
        )
        await producer.tasks.SubmitTasks(batch, timeout=10)
    assert value("submits_refused_total", reason="UNKNOWN_QUEUE", queue="") - before["UNKNOWN_QUEUE"] == 20
    assert value("submits_refused_total", reason="UNKNOWN_KIND", queue="") - before["UNKNOWN_KIND"] == 50
    assert label_values("submits_refused_total", "reason") <= reasons()
    assert b"hostile" not in metrics.exposition()
    assert b"headrace_fake" not in metrics.exposition()


async def test_a_full_queue_is_named_and_a_repeated_key_counts_apart(database_url: str) -> None:
    full = {"reason": "BACKLOG_FULL", "queue": "tiny"}
    before = value("submits_refused_total", **full)
    repeated = {"kind": "plain", "queue": "tiny"}
    repeated_before, accepted = value("submits_repeated_total", **repeated), value("submitted_total", **repeated)
    async with running_producer(database_url) as producer:
        for number in range(2):
            await producer.submit(queue="tiny", idempotency_key=f"key-{number}")
        assert (await refused(producer.submit(queue="tiny"))).reason == "BACKLOG_FULL"
        await producer.submit(queue="tiny", idempotency_key="key-1")
    assert value("submits_refused_total", **full) - before == 1
    assert value("submits_repeated_total", **repeated) - repeated_before == 1
    assert value("submitted_total", **repeated) - accepted == 2


# -- times -------------------------------------------------------------------------------------------------------------
async def test_the_times_of_a_task_are_those_that_postgres_saw(db: Database) -> None:
    await declare(db, [QueueSettings(name="timed")])
    task = await submitted(db, queue="timed")
    lag = value("relay_lag_seconds_sum", path="sweep")
    old = "update headrace_core.units set created_at = now() - interval '90 s', due_at = now() - interval '40 s'"
    await db.execute(f"{old} where task_id = %(id)s", {"id": task.id})
    assert await take_unpublished(db, 10, 0.0)
    assert value("relay_lag_seconds_sum", path="sweep") - lag == pytest.approx(40, abs=5)
    unit = await claimed(db, a_holder(), task.id)
    await settle(db, [Complete(unit.lease, b"{}")])
    assert value("wait_seconds_sum", queue="timed") == pytest.approx(40, abs=5)
    assert value("task_seconds_sum", queue="timed", state="COMPLETED") == pytest.approx(90, abs=5)


async def test_ends_from_outside_are_timed_as_well_and_redriven_tasks_are_not(db: Database) -> None:
    task, again = await submitted(db, queue="ended"), await submitted(db, queue="ended")
    await db.execute("update headrace_core.units set generation = 2 where task_id = %(id)s", {"id": again.id})
    for each in (task, again):
        await cancel(db, each.id)
    assert value("task_seconds_count", queue="ended", state="CANCELLED") == 1


# -- losses ------------------------------------------------------------------------------------------------------------
async def test_a_checkpoint_without_its_lease_counts_as_fenced(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    await cancel(db, task.id)
    before = value("fenced_total")
    reporter = Reporter(db, (), lambda _wakes: None, lambda _leases: None)
    with pytest.raises(LeaseLost):
        await reporter.checkpoint(unit.lease, b"{}")
    assert value("fenced_total") - before == 1


async def test_hints_that_find_no_room_are_counted_as_dropped(db: Database) -> None:
    task = await submitted(db)
    before = value("wakes_dropped_total")
    announcer = Announcer(None)
    announcer.wakes([Wake(task.id, number) for number in range(MAX_WAITING + 7)])
    assert value("wakes_dropped_total") - before == 7


# -- connections -------------------------------------------------------------------------------------------------------
async def test_statements_that_wait_for_a_connection_are_seen(database_url: str) -> None:
    database = Database(database_url, max_size=1)
    await database.open()
    await database.fetch("select 1")
    waiting = [asyncio.create_task(database.fetch("select pg_sleep(0.5)")) for _ in range(3)]

    def shown() -> tuple[float, float]:
        metrics.exposition()
        return value("db_connections", state="busy"), value("db_waiting")

    await eventually(lambda: shown() == (1, 2), what="one busy, two waiting")
    await asyncio.gather(*waiting)
    await eventually(lambda: shown() == (0, 0), what="none busy")
    await database.close()
    metrics.exposition()
    assert value("db_connections", state="idle") == 0


# -- inference ---------------------------------------------------------------------------------------------------------
async def with_usage(exchange: Exchange) -> None:
    """As OpenAI answers a request for usage: in a last piece without choices."""
    await exchange.start_stream()
    await exchange.send_text(json.dumps(REPLY), "stop")
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
    shape = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    await exchange.send(json.dumps({**shape, "usage": usage}))
    await exchange.end_stream()


async def too_many(exchange: Exchange) -> None:
    await exchange.refuse(429, "slow down", retry_after="3600")


async def test_inferences_are_timed_and_their_tokens_cost_what_was_configured() -> None:
    server = InferenceServer(behaviours=[with_usage, too_many])
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    given = {"backend": "openai", "model": "m", "api_key": KEY, "prompt_price": 2.0, "completion_price": 8.0}
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    backend = OpenAIBackend(AISettings.model_validate({**given, "base_url": url, "count_tokens": True}))
    names = ("inference_tokens_total", "inference_cost_total", "inference_seconds_count")
    cost = value(names[1])
    prompt, completion = (value(names[0], direction=each) for each in ("prompt", "completion"))
    outcomes = [value(names[2], backend="openai", outcome=each) for each in ("ok", "throttled")]
    await run_one_shard(backend)
    with pytest.raises(RetryAfter):
        await run_one_shard(backend)
    await backend.close()
    listening.close()
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert DOCUMENT in json.dumps(server.bodies[0])
    assert value(names[0], direction="prompt") - prompt == 1000
    assert value(names[0], direction="completion") - completion == 500
    assert value(names[1]) - cost == pytest.approx(0.006)
    now = [value(names[2], backend="openai", outcome=each) for each in ("ok", "throttled")]
    assert [after - before for after, before in zip(now, outcomes, strict=True)] == [1, 1]
