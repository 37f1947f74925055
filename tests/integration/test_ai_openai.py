"""The openai back end against a real HTTP server that speaks the chat completions protocol, well and badly."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from consumer.builtin import Analyze
from consumer.builtin.ai import inference_health
from consumer.builtin.ai.backend import InferenceError, process_backend
from consumer.builtin.ai.models import AnalyzeInput, AnalyzeResult
from consumer.builtin.ai.openai_backend import MAX_REPLY_CHARACTERS, OpenAIBackend
from consumer.builtin.ai.openai_errors import retry_after
from consumer.builtin.ai.settings import AISettings
from headrace.handlers import NonRetryable, RetryAfter
from headrace.testing import run_sharded
from tests.documents.handbooks import found_among_first_three, handbook
from tests.documents.recording import RecordingContext, analysed
from tests.integration.inference_server import DOCUMENT, KEY, REPLY, Exchange, InferenceServer


@pytest.fixture
async def server() -> AsyncIterator[InferenceServer]:
    inference = InferenceServer()
    listening = await asyncio.start_server(inference.serve, "127.0.0.1", 0)
    inference.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    yield inference
    listening.close()


@pytest.fixture
async def backend(server: InferenceServer) -> AsyncIterator[OpenAIBackend]:
    opened = OpenAIBackend(settings_for(server))
    yield opened
    await opened.close()


def settings_for(server: InferenceServer, **changed: Any) -> AISettings:
    given = {"backend": "openai", "base_url": server.url, "model": "m", "api_key": KEY, "timeout_seconds": 10.0}
    return AISettings.model_validate({**given, **changed})


def given_input() -> AnalyzeInput:
    return AnalyzeInput(document=DOCUMENT, questions=["What do cats do?"], instructions="Be brief.")


async def run_one_shard(backend: OpenAIBackend, context: RecordingContext | None = None) -> dict[str, Any]:
    analyze, ctx = Analyze(backend), context or RecordingContext()
    shards = await analyze.plan(ctx, given_input())
    return await analyze.run_shard(ctx, shards[0])


async def failing(settings: AISettings) -> Exception:
    """Run one shard with these settings; return what it raises."""
    backend = OpenAIBackend(settings)
    try:
        await run_one_shard(backend)
    except (NonRetryable, RetryAfter, InferenceError) as error:
        return error
    finally:
        await backend.close()
    raise AssertionError("the shard succeeded")


async def test_a_document_is_analysed_and_its_text_streams_as_output(
    server: InferenceServer, backend: OpenAIBackend
) -> None:
    run = await run_sharded(Analyze(backend), given_input())
    result, units = run.result, [run.shards[0].attempts[0], run.merge]
    AnalyzeResult.model_validate(result)
    assert result["summary"] == "About leases and cats."
    assert result["key_points"] == ["Leases are renewed together."]
    assert result["answers"][0]["answer"] == "They sleep."
    assert "Cats sleep" in result["answers"][0]["passages"][0]["text"]
    assert (result["backend"], result["model"], result["scoring"]) == ("openai", "m", "model+bm25")
    assert [unit.output.count(json.dumps(REPLY)) for unit in units] == [1, 1]
    assert all(len(unit.outputs) > 2 for unit in units)
    assert [unit.usage["ai_requests"] for unit in units] == [1, 1]
    asked = json.dumps(server.bodies[0])
    assert server.bodies[0]["stream"] is True
    assert all(text in asked for text in (DOCUMENT, "What do cats do?", "Be brief."))


async def test_output_comes_while_the_model_still_writes(server: InferenceServer, backend: OpenAIBackend) -> None:
    proceed = asyncio.Event()

    async def in_two_halves(exchange: Exchange) -> None:
        text = json.dumps(REPLY)
        await exchange.start_stream()
        await exchange.send_text(text[:30])
        async with asyncio.timeout(10):
            await proceed.wait()
        await exchange.send_text(text[30:], "stop")
        await exchange.end_stream()

    server.behaviours = [in_two_halves]
    ctx = RecordingContext()
    running = asyncio.create_task(run_one_shard(backend, ctx))
    async with asyncio.timeout(10):
        await ctx.some_output.wait()
    assert not running.done()
    proceed.set()
    assert (await running)["summary"] == "About leases and cats."


async def test_a_429_throttles_this_call_and_the_next(server: InferenceServer, backend: OpenAIBackend) -> None:
    async def throttled(exchange: Exchange) -> None:
        await exchange.refuse(429, "slow down", Retry_After="40")

    server.behaviours = [throttled]
    with pytest.raises(RetryAfter) as caught:
        await run_one_shard(backend)
    assert caught.value.delay == timedelta(seconds=40)
    with pytest.raises(RetryAfter) as caught:
        await run_one_shard(backend)
    assert timedelta(seconds=35) < caught.value.delay <= timedelta(seconds=40)
    assert len(server.bodies) == 1  # the second was held back here, and the client repeated nothing by itself


async def test_a_short_throttle_is_sat_out(server: InferenceServer, backend: OpenAIBackend) -> None:
    async def throttled(exchange: Exchange) -> None:
        await exchange.refuse(429, "slow down", Retry_After_Ms="300")

    server.behaviours = [throttled]
    with pytest.raises(RetryAfter):
        await run_one_shard(backend)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert (await run_one_shard(backend))["summary"]
    assert loop.time() - began >= 0.25


async def test_a_used_up_quota_is_not_repeated(server: InferenceServer) -> None:
    async def used_up(exchange: Exchange) -> None:
        await exchange.refuse(429, "You exceeded your quota", "insufficient_quota")

    server.behaviours = [used_up]
    assert isinstance(await failing(settings_for(server)), NonRetryable)


async def test_a_500_and_an_error_in_mid_stream_are_for_another_attempt(server: InferenceServer) -> None:
    async def broken(exchange: Exchange) -> None:
        await exchange.refuse(500, "out of memory")

    async def breaks(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send_text('{"summary"')
        await exchange.send('{"error": {"message": "the worker died", "code": 500}}')
        await exchange.end_stream()

    server.behaviours = [broken, breaks]
    first, second = await failing(settings_for(server)), await failing(settings_for(server))
    assert isinstance(first, InferenceError)
    assert "500" in str(first)
    assert isinstance(second, InferenceError)
    assert "the worker died" in str(second)
    assert len(server.bodies) == 2


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_connection_cut_in_mid_stream_is_for_another_attempt(server: InferenceServer, chunked: bool) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.start_stream(chunked=chunked)
        # A whole JSON object: only the missing end tells that more was to come.
        await exchange.send_text(json.dumps(REPLY), chunked=chunked)
        exchange.writer.close()

    server.behaviours = [cut]
    error = await failing(settings_for(server))
    assert isinstance(error, InferenceError)
    assert "cut" in str(error)


async def test_a_server_that_stalls_runs_into_the_time_limit(server: InferenceServer) -> None:
    hung_up = asyncio.Event()

    async def stalls(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.hung_up()
        hung_up.set()

    server.behaviours = [stalls]
    error = await failing(settings_for(server, timeout_seconds=0.5))
    assert isinstance(error, InferenceError)
    assert "0.5 s" in str(error)
    async with asyncio.timeout(10):
        await hung_up.wait()


async def test_a_server_that_is_not_there_is_for_another_attempt(server: InferenceServer) -> None:
    unused = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    error = await failing(settings_for(server, base_url=f"http://127.0.0.1:{port}/v1"))
    assert isinstance(error, InferenceError)
    assert str(port) in str(error)


async def test_a_wrong_key_is_named_and_not_quoted(server: InferenceServer) -> None:
    error = await failing(settings_for(server, api_key="sk-wrong"))
    assert isinstance(error, NonRetryable)
    assert error.reason == "INFERENCE_401"
    assert "HEADRACE_AI_API_KEY" in str(error)
    assert "sk-wrong" not in str(error)


async def test_an_unknown_model_is_named(server: InferenceServer) -> None:
    error = await failing(settings_for(server, model="gpt-0"))
    assert isinstance(error, NonRetryable)
    assert "'gpt-0'" in str(error)
    assert "HEADRACE_AI_MODEL" in str(error)


@pytest.mark.parametrize(
    ("text", "finish", "problem"),
    [
        ("I would rather not.", "stop", "no JSON object"),
        ('{"points": []}', "stop", "no JSON object"),
        ('{"summary": "cut', "length", "length limit"),
        ("x" * (MAX_REPLY_CHARACTERS + 1), "stop", "cut off"),
    ],
    ids=["prose", "no summary", "length", "endless"],
)
async def test_unusable_answers_are_for_another_attempt(
    server: InferenceServer, text: str, finish: str, problem: str
) -> None:
    server.behaviours = [lambda exchange: exchange.whole_stream(text, finish)]
    error = await failing(settings_for(server))
    assert isinstance(error, InferenceError)
    assert problem in str(error)


async def test_json_is_found_among_thoughts_and_members_may_be_odd(
    server: InferenceServer, backend: OpenAIBackend
) -> None:
    odd = {"summary": "S", "key_points": None, "answers": [{"question": "1", "answer": None, "quotes": None}, 5]}
    text = '<think>{"summary": "not this"}</think> {not json} ' + json.dumps(odd) + " Done."
    server.behaviours = [lambda exchange: exchange.whole_stream(text)]
    part = await run_one_shard(backend)
    assert (part["summary"], part["key_points"], part["findings"][0]["answer"]) == ("S", [], None)
    assert part["findings"][0]["passages"]


async def test_cancelling_a_shard_lets_go_of_the_server(server: InferenceServer, backend: OpenAIBackend) -> None:
    hung_up = asyncio.Event()

    async def endless(exchange: Exchange) -> None:
        await exchange.start_stream()
        await exchange.send_text("begun")
        await exchange.hung_up()
        hung_up.set()

    server.behaviours = [endless]
    ctx = RecordingContext()
    running = asyncio.create_task(run_one_shard(backend, ctx))
    async with asyncio.timeout(10):
        await ctx.some_output.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(10):
        await hung_up.wait()
    assert (await run_one_shard(backend))["summary"]


async def test_many_shards_and_both_languages_stay_within_bounds(
    server: InferenceServer, backend: OpenAIBackend
) -> None:
    book = handbook("zh")
    given = AnalyzeInput(document=book.text * 20, questions=book.questions)
    result = await analysed(Analyze(backend), given)
    assert len(result["shards"]) > 4
    assert len(json.dumps(result)) < 1_048_576
    assert result["scoring"] == "model+bm25-cjk"
    once = await analysed(Analyze(backend), AnalyzeInput(document=book.text, questions=book.questions))
    assert len(found_among_first_three(book, once["answers"])) >= 8


async def test_health_lists_the_models(server: InferenceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BACKEND": "openai", "BASE_URL": server.url, "MODEL": "m", "API_KEY": KEY}.items():
        monkeypatch.setenv(f"HEADRACE_AI_{name}", value)
    process_backend.cache_clear()
    health = await inference_health()
    assert (health["backend"], health["model"], health["models"]) == ("openai", "m", ["m", "n"])
    assert health["lastError"] is None
    assert health["latencyMs"] > 0
    await process_backend().close()
    process_backend.cache_clear()


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"model": "gpt-0"}, "does not offer"),
        ({"api_key": "sk-wrong"}, "API_KEY"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "reached"),
    ],
)
async def test_health_says_what_is_wrong(server: InferenceServer, changed: dict[str, str], problem: str) -> None:
    backend = OpenAIBackend(settings_for(server, **changed))
    health = await backend.health()
    await backend.close()
    assert health.error is not None
    assert problem in health.error
    assert "sk-wrong" not in health.error


def test_retry_after_is_read_in_all_its_forms() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert retry_after({"retry-after": "7"}, now) == timedelta(seconds=7)
    assert retry_after({"retry-after": "7", "retry-after-ms": "250"}, now) == timedelta(milliseconds=250)
    assert retry_after({"retry-after": format_datetime(now + timedelta(seconds=90), usegmt=True)}, now) == timedelta(
        seconds=90
    )
    assert retry_after({"retry-after": format_datetime(now - timedelta(days=1), usegmt=True)}, now) == timedelta(0)
    assert retry_after({"retry-after": "1e99"}, now) == timedelta(hours=1)
    assert [retry_after({"retry-after": text}, now) for text in ("", "soon", "nan")] == [None, None, None]
    assert retry_after({}, now) is None
