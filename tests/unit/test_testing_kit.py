"""`headrace.testing`: a handler gets what a consumer would give it; what it does is kept, and judged the same way."""

import asyncio
import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest

from consumer.invocation import outcome_of
from consumer.registry import Registry, collect
from headrace import NonRetryable, SyncTaskContext, TaskContext, handler
from headrace.errors import InvalidFieldsError
from headrace.testing import (
    HandlerRun,
    InputRefused,
    Progress,
    ResultRefused,
    run_batch,
    run_handler,
)
from headrace_core.tasks.outcome import Raised, Succeeded
from tests.handlers import sample_handlers as samples


class Order(pydantic.BaseModel):
    order_id: str = pydantic.Field(alias="orderId")
    pages: int


@handler("kit-all")
async def all_of_it(ctx: TaskContext, input: Order) -> Order:
    await ctx.progress(2.0, "too far\x00")
    await ctx.progress(float("nan"))
    await ctx.output("one ")
    await ctx.output("two")
    await ctx.checkpoint({"page": (1, 2)})
    ctx.count("pages", input.pages)
    ctx.count("pages")
    ctx.log.info("read", pages=input.pages)
    return input


async def test_a_run_keeps_everything_that_the_handler_did(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run = await run_handler(all_of_it, {"orderId": "7", "pages": 3}, task_id="t")
    assert run.result == {"order_id": "7", "pages": 3}
    assert run.progress == [Progress(1.0, "too far\ufffd"), Progress(0.0)]
    assert (run.output, run.outputs) == ("one two", ["one ", "two"])
    assert run.checkpoint == {"page": [1, 2]}
    assert run.usage == {"pages": 4}
    assert not run.interrupted
    assert "read task='t' attempt=1 pages=3" in caplog.text


async def test_a_model_is_sent_by_its_aliases_like_the_client_does() -> None:
    assert (await run_handler(all_of_it, Order(orderId="7", pages=1))).result["order_id"] == "7"


@handler("kit-facts")
async def facts(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    assert ctx.deadline is not None
    return {
        "attempt": ctx.attempt,
        "epoch": ctx.epoch,
        "restored": ctx.restored,
        "deadline": ctx.deadline.isoformat(),
        "task": ctx.task_id,
        "shard": ctx.shard_index,
        "input": input,
    }


async def test_the_context_says_what_the_test_says() -> None:
    deadline = datetime(2031, 1, 1, tzinfo=UTC)
    run = await run_handler(facts, {"n": 2**70}, attempt=2, epoch=9, restored=[1], deadline=deadline, task_id="t")
    assert run.result == {
        "attempt": 2,
        "epoch": 9,
        "restored": [1],
        "deadline": deadline.isoformat(),
        "task": "t",
        "shard": None,
        "input": {"n": 2**70},
    }
    soon = (await run_handler(facts, {}, deadline=timedelta(hours=1), attempt=3)).result
    assert soon["epoch"] == 3
    assert timedelta(minutes=59) < datetime.fromisoformat(soon["deadline"]) - datetime.now(UTC) < timedelta(minutes=61)
    with pytest.raises(ValueError, match="aware"):
        await run_handler(facts, {}, deadline=datetime(2031, 1, 1))  # noqa: DTZ001 - what must be refused


@handler("kit-plain")
def plain(ctx: SyncTaskContext, input: dict[str, Any]) -> str:
    ctx.progress(0.5, "half")
    ctx.output("said")
    ctx.checkpoint(1)
    return threading.current_thread().name


@handler("kit-process", execution="process")
def process(ctx: SyncTaskContext, input: dict[str, Any]) -> str:
    return threading.current_thread().name


@pytest.mark.parametrize("function", [plain, process])
async def test_plain_and_process_handlers_run_in_a_thread(function: Any) -> None:
    run = await run_handler(function, {})
    assert run.result == "headrace-handler"
    if function is plain:
        assert (run.progress, run.output, run.checkpoint) == ([Progress(0.5, "half")], "said", 1)


def test_it_works_with_plain_asyncio_run() -> None:
    assert asyncio.run(run_handler(samples.double, {"n": 21})).result == {"doubled": 42, "attempt": 1}
    assert asyncio.run(run_handler(samples.plain_thread, {"n": 1})).result["n"] == 1


@pytest.mark.parametrize(
    ("payload", "error", "said"),
    [
        ({"n": "many"}, InputRefused, "the payload does not fit double's input: n: Input should be a valid integer"),
        ({}, InputRefused, "n: Field required"),
        ({"n": float("nan")}, InvalidFieldsError, "no JSON"),
        ({"n": object()}, InvalidFieldsError, "no JSON"),
        ({"n": 1, "text": "\x00"}, InputRefused, "NUL"),
        ({"n": 1, "text": "x" * 1024 * 1024}, InvalidFieldsError, "bytes"),
    ],
)
async def test_a_payload_that_would_not_reach_the_handler_is_refused(payload: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        await run_handler(samples.double, payload)


async def test_the_handlers_own_exceptions_come_unchanged() -> None:
    with pytest.raises(NonRetryable) as caught:
        await run_handler(samples.non_retryable)
    assert caught.value.reason == "BAD_DOCUMENT"
    with pytest.raises(ValueError, match="attempt 2 failed"):
        await run_handler(samples.always_fails, {}, attempt=2)
    run = await run_handler(samples.fails_twice, {}, raise_errors=False)
    assert isinstance(run.error, ValueError)
    again = await run_handler(samples.fails_twice, {}, attempt=3, restored=2)
    assert (run.checkpoint, again.result) == (1, {"attempt": 3, "seen": 2})


@handler("kit-checkpoint")
async def bad_checkpoint(ctx: TaskContext, input: dict[str, Any]) -> None:
    await ctx.checkpoint({"at": float("inf")})


async def test_a_checkpoint_that_is_no_json_is_the_handlers_error() -> None:
    with pytest.raises(ValueError, match="the checkpoint is not JSON"):
        await run_handler(bad_checkpoint)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Tree(pydantic.BaseModel):
    child: "Tree | None" = None
    weight: float = 1.0


RESULTS = [
    None,
    {"a": [1, 2.5, "数据", True]},
    (1, 2),
    Tree(child=Tree()),
    {"model": Tree()},
    nested(32),
    nested(33),
    {"n": float("nan")},
    Tree(weight=float("inf")),
    {"n": 10**400},
    {"text": "\x00"},
    {"text": "\ud800"},
    {"s": {1, 2}},
    object(),
    "x" * (1024 * 1024 - 2),
    "x" * 1024 * 1024,
    {1: "a key that is no text"},
]


@handler("kit-returns")
async def returns(ctx: TaskContext, input: dict[str, Any]) -> Any:
    return RESULTS[input["index"]]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return collect([__name__, "tests.handlers.sample_handlers"], built_in=False)


@pytest.mark.parametrize("index", range(len(RESULTS)))
async def test_a_result_is_judged_as_a_consumer_judges_it(registry: Registry, index: int) -> None:
    judged = outcome_of(registry.handlers["kit-returns"], "TASK", RESULTS[index])
    if isinstance(judged, Succeeded):
        assert (await run_handler(returns, {"index": index})).result == pydantic.TypeAdapter(Any).validate_json(
            judged.result
        )
        return
    assert isinstance(judged, Raised)
    with pytest.raises(ResultRefused) as refused:
        await run_handler(returns, {"index": index})
    assert str(refused.value) == judged.message


async def test_a_batch_gives_each_input_its_answer() -> None:
    batch = await run_batch(samples.batch_double, [{"n": 1}, {"n": "x"}, {"n": 13}, {"n": 4}])
    first, misfit, unlucky, last = batch.runs
    assert (first.result, last.result) == ({"doubled": 2, "of": 3, "ids": 3}, {"doubled": 8, "of": 3, "ids": 3})
    assert isinstance(misfit.error, InputRefused)
    assert isinstance(unlucky.error, ValueError)
    assert batch.results == [first.result, misfit.error, unlucky.error, last.result]


@handler("kit-batch", batch=True)
def reporting_batch(ctx: Any, inputs: list[dict[str, Any]]) -> list[Any]:
    ctx.progress(0.5)
    ctx.tasks[1].output("only me")
    ctx.count("calls")
    return [1, object()]


async def test_a_plain_batch_reports_for_all_and_for_each() -> None:
    batch = await run_batch(reporting_batch, [{}, {}])
    assert [run.progress for run in batch.runs] == [[Progress(0.5)], [Progress(0.5)]]
    assert [run.output for run in batch.runs] == ["", "only me"]
    assert batch.usage == {"calls": 1}
    assert batch.runs[0].result == 1
    assert isinstance(batch.runs[1].error, ResultRefused)


async def test_a_batch_that_answers_with_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="given 2 inputs and returned 0 answers"):
        await run_batch(samples.batch_wrong, [{}, {}])


@handler("kit-waiting-batch", batch=True)
async def waiting_batch(ctx: Any, inputs: list[dict[str, Any]]) -> list[Any]:
    await ctx.output("begun")
    await asyncio.Event().wait()
    return []


async def test_a_batch_is_interrupted_as_a_whole() -> None:
    batch = await run_batch(waiting_batch, [{}, {}], interrupt_when=lambda run: bool(run.output), grace=0)
    assert batch.interrupted
    assert all(run.interrupted for run in batch.runs)


async def test_each_runner_says_what_it_is_not_for() -> None:
    with pytest.raises(TypeError, match="use run_batch"):
        await run_handler(samples.batch_double)
    with pytest.raises(TypeError, match="use run_handler"):
        await run_batch(samples.double, [])
    with pytest.raises(TypeError, match="decorate it"):
        await run_handler(nested)


def test_it_needs_none_of_the_servers_libraries() -> None:
    program = (
        "import sys, importlib\n"
        "for name in ('nats', 'psycopg', 'structlog', 'pydantic_settings', 'headrace_core', 'consumer'):\n"
        "    sys.modules[name] = None\n"
        "import headrace.testing as kit\n"
        "import asyncio\n"
        "[getattr(kit, name) for name in kit.__all__]\n"
        "from headrace import handler\n"
        "@handler('k')\n"
        "async def k(ctx, input): return {'n': input['n'] + 1}\n"
        "print(asyncio.run(kit.run_handler(k, {'n': 1})).result)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (run.stdout, run.stderr) == ("{'n': 2}\n", "")


def test_the_plugin_loads_nothing_heavy() -> None:
    program = (
        "import sys, pytest, headrace.testing.plugin;"
        "print([n for n in ('grpc', 'pydantic', 'headrace.handlers', 'headrace_core', 'psycopg') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "[]"


def test_a_run_without_checkpoints_restores_nothing() -> None:
    assert HandlerRun().checkpoint is None
