"""Traces of real service processes, as a collector sees them: one for a task, whatever becomes of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider

from headrace.errors import TaskNotFoundError
from headrace.sync import SyncClient
from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.db.pool import Database
from headrace_core.stack.nats import NatsServer
from tests.fixtures.fleet import Fleet, fleet
from tests.fixtures.trace_collector import Collector, Seen, collecting
from tests.fixtures.waiting import eventually
from tests.integration.inference_server import DOCUMENT, KEY, InferenceServer

SECRET = "zebra-crossing-4711"
TOML = """queues = [
  {name = "default", ack_wait = "1s", backoff = {initial = "50ms", maximum = "1s"}},
  {name = "batches", ack_wait = "1s", max_batch_size = 3, max_batch_timeout = "5s"},
]
"""


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as found:
        yield found
        assert not any(SECRET.encode() in request for request in found.raw), "a payload is in a span"


@pytest.fixture
async def traced(database_url: str, nats_url: str, tmp_path: Path, collector: Collector) -> AsyncIterator[Fleet]:
    async with fleet(database_url, nats_url, tmp_path, handlers="traced", toml=TOML) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name, plus=collector.environment)
        await services.start()
        yield services


@pytest.fixture(scope="module")
def application() -> trace.Tracer:
    """The application's own OpenTelemetry: the SDK under test finds it by itself."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    return trace.get_tracer("application")


def lines(services: Fleet, folder: Path) -> list[dict[str, Any]]:
    """What the services have logged as JSON so far."""
    found = []
    for line in (folder / "fleet.log").read_text(encoding="utf-8").splitlines():
        start = line.find("{")
        if start >= 0:
            found.append(json.loads(line[start:]))
    return found


async def submit_without_trace(services: Fleet, kind: str) -> str:
    """As a client does whose application knows nothing of traces."""
    async with grpc.aio.insecure_channel(services.services["producer"].addresses.grpc or "") as channel:
        stub: Any = producer_pb2_grpc.ProducerServiceStub(channel)
        response = await stub.SubmitTask(producer_pb2.SubmitTaskRequest(kind=kind, payload_json=b"{}"))
    return str(response.task.id)


async def of_trace(collector: Collector, name: str, trace_id: str, count: int = 1) -> list[Seen]:
    return await collector.find(lambda span: span.name == name and span.trace == trace_id, count)


async def test_a_plain_task_is_one_trace_from_the_client_to_the_commit(
    traced: Fleet, collector: Collector, application: trace.Tracer, tmp_path: Path
) -> None:
    async with traced.client() as client:
        with application.start_as_current_span("request") as root:
            task = await client.submit("on-loop", {"secret": SECRET})
        trace_id = f"{root.get_span_context().trace_id:032x}"
        result = await client.result(task.id, timeout=20)
    assert result == {"trace": trace_id, "deep": trace_id}
    rpc = await collector.one("headrace.v1.ProducerService/SubmitTask")
    create, send = await collector.one("create default"), await collector.one("send default")
    process, work = await collector.one("process default"), await collector.one("work on loop")
    deep = await collector.one("work in to_thread")
    assert {span.trace for span in (rpc, create, send, process, work, deep)} == {trace_id}
    assert rpc.parent not in ("", f"{root.get_span_context().span_id:016x}"), "the span of the SDK is between"
    assert create.parent == rpc.id
    assert (send.parent, process.parent) == (create.id, create.id)
    assert (work.parent, deep.parent) == (process.id, process.id)
    assert [span.kind for span in (rpc, create, send, process)] == ["SERVER", "PRODUCER", "CLIENT", "CONSUMER"]
    assert [span.service for span in (rpc, send, process, work)] == ["headrace-producer"] * 2 + [
        "headrace-consumer"
    ] * 2
    assert rpc.attributes["rpc.response.status_code"] == "OK"
    assert {key: value for key, value in process.attributes.items() if key.startswith("headrace.")} == {
        "headrace.task_id": task.id,
        "headrace.namespace": "default",
        "headrace.queue": "default",
        "headrace.kind": "on-loop",
        "headrace.unit": -1,
        "headrace.unit_type": "TASK",
        "headrace.attempt": 1,
        "headrace.epoch": 1,
        "headrace.generation": 1,
        "headrace.source": "broker",
        "headrace.outcome": "succeeded",
    }
    assert process.events == ["handler ended", "settled"]
    assert not process.failed
    (line,) = [line for line in lines(traced, tmp_path) if line.get("action") == "test.work"]
    assert line["trace_id"] == trace_id


@pytest.mark.parametrize(("kind", "span"), [("in-thread", "work in thread"), ("in-process", "work in process")])
async def test_a_handler_elsewhere_than_on_the_loop_is_in_the_trace_and_so_are_its_lines(
    traced: Fleet, collector: Collector, tmp_path: Path, kind: str, span: str
) -> None:
    async with traced.client() as client:
        task = await client.submit(kind, {})
        result = await client.result(task.id, timeout=20)
    process, work = await collector.one("process default"), await collector.one(span)
    assert (work.trace, work.parent) == (process.trace, process.id)
    assert result["trace"] == process.trace
    (line,) = [line for line in lines(traced, tmp_path) if line.get("action") == "test.work"]
    assert line["trace_id"] == process.trace


async def test_shards_a_retry_and_the_merge_are_in_the_trace_of_their_task(traced: Fleet, collector: Collector) -> None:
    async with traced.client() as client:
        task = await client.submit("flaky-shards", {"secret": SECRET})
        assert await client.result(task.id, timeout=20) == {"parts": [0, 1], "secret": SECRET}
    create = await collector.one("create default")
    attempts = await of_trace(collector, "process default", create.trace, 5)
    assert {span.parent for span in attempts} == {create.id}
    seen = sorted((span.attributes["headrace.unit"], span.attributes["headrace.attempt"]) for span in attempts)
    assert seen == [(-2, 1), (-1, 1), (0, 1), (1, 1), (1, 2)]
    (failed,) = [span for span in attempts if span.failed]
    assert (failed.attributes["headrace.unit"], failed.attributes["headrace.attempt"]) == (1, 1)
    assert (failed.attributes["error.type"], failed.attributes["headrace.outcome"]) == ("RetryAfter", "raised")
    (plan,) = [span for span in attempts if span.attributes["headrace.unit_type"] == "PLAN"]
    sends = [span for span in await of_trace(collector, "send default", create.trace, 4) if span.parent == plan.id]
    assert sorted(span.attributes["headrace.unit"] for span in sends) == [0, 1]
    works = await of_trace(collector, "work in shard", create.trace, 2)
    assert {span.parent for span in works} < {span.id for span in attempts}


async def test_a_redrive_goes_on_in_the_trace_of_its_task_with_links(
    traced: Fleet, collector: Collector, application: trace.Tracer
) -> None:
    async with traced.client() as client:
        task = await client.submit("fails-on-secret", {"secret": SECRET})
        await client.wait(task.id, timeout=20)
        with application.start_as_current_span("operator"):
            await client.dead_letters.redrive(ids=[f"{task.id}-1"], payload={"secret": SECRET, "fails": False})
        assert await client.result(task.id, timeout=20) == {"secret": SECRET}
    create, letter = await collector.one("create default"), await collector.one("dead_letter default")
    redrive, call = (
        await collector.one("redrive default"),
        await collector.one("headrace.v1.DeadLetterService/RedriveDeadLetters"),
    )
    first, second = await of_trace(collector, "process default", create.trace, 2)
    assert (letter.parent, letter.attributes["headrace.dead_letter_id"]) == (first.id, f"{task.id}-1")
    assert letter.attributes["headrace.reason"] == "NON_RETRYABLE"
    assert (first.failed, second.failed) == (True, False)
    assert (redrive.trace, redrive.parent) == (create.trace, create.id)
    assert redrive.links == [create.id, call.id]
    assert call.trace != create.trace
    assert second.parent == redrive.id
    assert [span.attributes["headrace.generation"] for span in (first, redrive, second)] == [1, 2, 2]
    sends = await collector.named("send default", 2)
    assert [span.parent for span in sends] == [create.id, redrive.id]


async def test_one_call_of_a_batch_handler_links_to_all_of_its_tasks_and_they_to_it(
    traced: Fleet, collector: Collector, application: trace.Tracer
) -> None:
    items: list[dict[str, Any]] = [{"n": 0}, {"n": 1}, {"n": 2, "bad": True, "secret": SECRET}]
    async with traced.client() as client:
        with application.start_as_current_span("request") as root:
            tasks = await client.submit_many(items, kind="in-batch", max_attempts=1)
        for task in tasks:
            await client.wait(task.id, timeout=20)
    attempts = await collector.named("process batches", 3)
    batch, work = await collector.one("batch in-batch"), await collector.one("work in batch")
    creates = await collector.named("create batches", 3)
    assert {span.trace for span in creates} == {f"{root.get_span_context().trace_id:032x}"}
    assert {span.parent for span in attempts} == {span.id for span in creates}
    assert sorted(batch.links) == sorted(span.id for span in attempts)
    assert batch.attributes["messaging.batch.message_count"] == 3
    assert batch.parent in {span.id for span in attempts}
    assert work.parent == batch.id
    assert all(span.links == [batch.id] for span in attempts)
    assert [span.attributes.get("error.type") for span in attempts if span.failed] == ["ValueError"]


async def test_without_a_broker_the_trace_comes_with_the_claim(
    database_url: str, nats_url: str, tmp_path: Path, collector: Collector
) -> None:
    async with fleet(database_url, nats_url, tmp_path, handlers="traced", toml=TOML) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name, broker="none", plus=collector.environment)
        await services.start()
        async with services.client() as client:
            task = await client.submit("on-loop", {})
            await client.result(task.id, timeout=20)
    create, process = await collector.one("create default"), await collector.one("process default")
    assert (process.trace, process.parent) == (create.trace, create.id)
    assert process.attributes["headrace.source"] == "postgres"
    assert not [span for span in collector.spans if span.name.startswith("send")]


async def test_with_the_broker_down_tasks_are_traced_all_the_same(
    traced: Fleet, collector: Collector, nats_server: NatsServer
) -> None:
    await nats_server.kill()
    async with traced.client() as client:
        task = await client.submit("on-loop", {})
        await client.result(task.id, timeout=30)
    create, process = await collector.one("create default"), await collector.one("process default")
    assert (process.trace, process.parent) == (create.trace, create.id)
    assert process.attributes["headrace.source"] == "postgres"


async def test_a_model_is_asked_within_the_trace_and_its_server_gets_it(
    database_url: str, nats_url: str, tmp_path: Path, collector: Collector
) -> None:
    inference = InferenceServer()
    listening = await asyncio.start_server(inference.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    openai: dict[str, Any] = {
        "ai_backend": "openai",
        "ai_base_url": f"http://127.0.0.1:{port}/v1",
        "ai_model": "m",
        "ai_api_key": KEY,
    }
    async with fleet(database_url, nats_url, tmp_path, toml=TOML) as services:
        services.add("producer", plus=collector.environment)
        services.add("consumer", plus=collector.environment, **openai)
        services.add("status")
        await services.start()
        async with services.client() as client:
            document = f"{DOCUMENT} {SECRET}."
            task = await client.submit("ai.analyze", {"document": document, "questions": ["What do cats do?"]})
            await client.result(task.id, timeout=30)
    listening.close()
    chats = await collector.named("chat m", 2)
    attempts = await collector.named("process default", 3)
    by_id = {span.id: span.attributes["headrace.unit"] for span in attempts}
    assert sorted(by_id[span.parent] for span in chats) == [-2, 0]
    sent = [head.partition("traceparent: ")[2][:55] for head in inference.heads]
    assert sent == [f"00-{span.trace}-{span.id}-01" for span in chats]
    assert chats[0].attributes["gen_ai.request.model"] == "m"
    assert not any(b"Cats sleep" in request or b"leases and cats" in request for request in collector.raw)


async def test_a_takeover_is_in_the_trace_and_the_next_attempt_too(
    database_url: str, nats_url: str, tmp_path: Path, collector: Collector
) -> None:
    ledger, release = tmp_path / "ledger", tmp_path / "release"
    ledger.touch()
    async with fleet(database_url, nats_url, tmp_path, toml=TOML) as services:
        for name in ("producer", "consumer", "consumer-2", "status"):
            services.add(name, plus=collector.environment)
        await services.start("producer", "consumer", "status")
        async with services.client() as client:
            task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
            await eventually(lambda: ledger.read_text() == "start 1\n", within=20)
            await services.start("consumer-2")
            await services.services["consumer"].kill()
            await eventually(lambda: ledger.read_text() == "start 1\nstart 2\n", within=20)
            release.touch()
            assert await client.result(task.id, timeout=20) == {"epoch": 2}
    create, takeover = await collector.one("create default"), await collector.one("takeover default")
    process = await collector.one("process default")
    assert (takeover.parent, process.parent) == (create.id, create.id)
    assert process.attributes["headrace.epoch"] == 2


async def test_a_refused_call_says_its_code_and_is_no_fault_of_the_server(traced: Fleet, collector: Collector) -> None:
    async with traced.client() as client:
        with pytest.raises(TaskNotFoundError):
            await client.cancel("0190d7a0-0000-7000-8000-000000000000")
    call = await collector.one("headrace.v1.ProducerService/CancelTask")
    assert (call.attributes["rpc.response.status_code"], call.failed) == ("NOT_FOUND", False)


async def test_an_unsampled_caller_is_not_traced_and_its_handlers_neither(traced: Fleet, collector: Collector) -> None:
    unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    context = trace.set_span_in_context(
        trace.NonRecordingSpan(trace.SpanContext(int(unsampled[3:35], 16), int(unsampled[36:52], 16), is_remote=True))
    )
    async with traced.client() as client:
        token = attach(context)
        try:
            task = await client.submit("on-loop", {})
        finally:
            detach(token)
        assert (await client.result(task.id, timeout=20))["trace"] == unsampled[3:35]
        other = await client.submit("in-thread", {})
        await client.result(other.id, timeout=20)
    await collector.one("process default")
    assert not [span for span in collector.spans if span.attributes.get("headrace.task_id") == task.id]
    assert not [span for span in collector.spans if span.name == "work on loop"]


async def test_the_ratio_of_the_environment_decides_for_callers_without_a_trace(
    database_url: str, nats_url: str, tmp_path: Path, collector: Collector
) -> None:
    ratio = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    async with fleet(database_url, nats_url, tmp_path, handlers="traced", toml=TOML) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name, plus=collector.environment | ratio)
        await services.start()
        task_id = await submit_without_trace(services, "in-process")
        async with services.client() as client:
            result = await client.result(task_id, timeout=20)
        assert await services.stop() == [0, 0, 0]
    assert collector.spans == []
    assert int(result["trace"], 16), "the decision goes along"


async def test_a_collector_that_takes_nothing_costs_no_task_and_two_lines(
    traced: Fleet, collector: Collector, tmp_path: Path
) -> None:
    collector.refusing = True

    def said(action: str) -> list[dict[str, Any]]:
        return [
            line for line in lines(traced, tmp_path) if line.get("action") == action and line["service"] == "consumer"
        ]

    async with traced.client() as client:
        for _ in range(3):
            task = await client.submit("on-loop", {})
            await client.result(task.id, timeout=20)
        (line,) = await eventually(lambda: said("traces.export_failed"), within=20)
        assert "RESOURCE_EXHAUSTED" in line["error"]
        collector.refusing = False
        for _ in range(2):
            task = await client.submit("on-loop", {})
            await client.result(task.id, timeout=20)
        await eventually(lambda: said("traces.export_resumed"), within=20)
    assert (len(said("traces.export_failed")), len(said("traces.export_resumed"))) == (1, 1)


async def test_a_stop_sends_the_last_spans(
    database_url: str, nats_url: str, tmp_path: Path, collector: Collector
) -> None:
    rarely = collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    async with fleet(database_url, nats_url, tmp_path, handlers="traced", toml=TOML) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name, plus=rarely)
        await services.start()
        async with services.client() as client:
            task = await client.submit("on-loop", {})
            await client.result(task.id, timeout=20)
        assert collector.spans == []
        assert await services.stop() == [0, 0, 0]
    assert [span.name for span in collector.spans if span.name == "process default"] == ["process default"]


async def test_the_blocking_client_takes_the_callers_trace_along(
    traced: Fleet, collector: Collector, application: trace.Tracer
) -> None:
    where = [traced.services[name].addresses.grpc or "" for name in ("producer", "status")]

    def submit() -> str:
        with application.start_as_current_span("request") as root, SyncClient(*where) as client:
            client.submit("in-thread", {})
            return f"{root.get_span_context().trace_id:032x}"

    trace_id = await asyncio.to_thread(submit)
    assert (await collector.one("process default")).trace == trace_id


async def test_off_nothing_of_it_is_imported_and_nothing_is_written(
    database_url: str, nats_url: str, tmp_path: Path, application: trace.Tracer
) -> None:
    async with fleet(database_url, nats_url, tmp_path, handlers="loaded", toml=TOML) as services:
        for name in ("producer", "consumer", "status"):
            services.add(name)
        await services.start()
        async with services.client() as client:
            with application.start_as_current_span("request"):
                tasks = [await client.submit(kind, {}) for kind in ("loaded", "loaded-in-process")]
            assert [await client.result(task.id, timeout=20) for task in tasks] == [[], []]
        database = Database(database_url, max_size=1)
        await database.open()
        rows = await database.fetch("select trace_context from headrace_core.units")
        await database.close()
        assert [row["trace_context"] for row in rows] == [None, None]
