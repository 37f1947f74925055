"""`headrace.testing`: handlers that are interrupted, too slow, or do not end at all."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from headrace import NonRetryable, SyncTaskContext, TaskContext, handler
from headrace.testing import HandlerDidNotEnd, run_handler
from headrace.testing import ending as ending_module
from tests.handlers import sample_handlers as samples


@handler("kit-pages")
async def pages(ctx: TaskContext, input: dict[str, Any]) -> Any:
    for page in range(ctx.restored or 0, input["pages"]):
        if ctx.cancelled.is_set():
            raise RuntimeError("gave up")
        await ctx.checkpoint(page + 1)
    return {"attempt": ctx.attempt}


async def test_an_interrupted_handler_goes_on_from_its_checkpoint() -> None:
    first = await run_handler(pages, {"pages": 9}, interrupt_when=lambda run: run.checkpoint == 4)
    assert (first.interrupted, first.checkpoint, first.result) == (True, 4, None)
    assert isinstance(first.error, RuntimeError)
    second = await run_handler(pages, {"pages": 9}, attempt=2, restored=first.checkpoint)
    assert (second.interrupted, second.checkpoints) == (False, [5, 6, 7, 8, 9])


async def test_a_handler_that_finishes_when_asked_has_its_result() -> None:
    run = await run_handler(samples.finishes_when_asked, {}, interrupt_when=lambda run: run.output == "begun")
    assert (run.interrupted, run.result) == (False, "finished in time")


@handler("kit-tidies-up")
async def tidies_up(ctx: TaskContext, input: dict[str, Any]) -> str:
    await ctx.progress(0.5)
    assert ctx.cancelled.is_set()
    await asyncio.sleep(0.05)  # what is left to do
    return "tidy"


async def test_a_handler_that_is_asked_has_the_grace_to_finish() -> None:
    run = await run_handler(tidies_up, {}, interrupt_when=lambda run: bool(run.progress))
    assert (run.interrupted, run.result) == (False, "tidy")


async def test_a_handler_that_does_not_listen_is_cancelled_after_the_grace() -> None:
    run = await run_handler(samples.waits, {}, interrupt_after=0.01, grace=0)
    assert (run.interrupted, run.output) == (True, "begun")
    assert isinstance(run.error, asyncio.CancelledError)


@handler("kit-listening-thread")
def listening_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    ctx.output("begun")
    assert ctx.cancelled.wait(10)  # type: ignore[attr-defined]
    raise InterruptedError


async def test_a_thread_is_asked_to_end() -> None:
    run = await run_handler(listening_thread, {}, interrupt_when=lambda run: bool(run.output))
    assert run.interrupted


@handler("kit-hopeless")
async def hopeless(ctx: TaskContext, input: dict[str, Any]) -> None:
    await ctx.output("begun")
    raise NonRetryable("whatever is asked of it")


async def test_a_failure_for_good_is_no_interruption() -> None:
    with pytest.raises(NonRetryable):
        await run_handler(hopeless, {}, interrupt_when=lambda run: bool(run.output))


async def test_a_handler_past_its_timeout_fails_whatever_it_returns() -> None:
    with pytest.raises(TimeoutError, match=r"longer than its timeout of 0\.2 s"):
        await run_handler(samples.slow)
    with pytest.raises(TimeoutError, match=r"longer than its timeout of 0\.1 s"):
        await run_handler(samples.slow_thread)
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        await run_handler(samples.waits, {}, timeout=timedelta(milliseconds=10))


@handler("kit-stalls", progress_timeout=timedelta(milliseconds=150))
async def stalls(ctx: TaskContext, input: dict[str, Any]) -> str:
    for step in range(6):
        await ctx.progress(step / 10, "loading")
        await asyncio.sleep(input["pause"])
    if input["standstill"]:
        await asyncio.Event().wait()
    return "done"


async def test_a_handler_without_progress_for_its_progress_timeout_fails() -> None:
    slow = {"pause": 0.25, "standstill": False}  # 1.5 s in all, and never a second without a report
    assert (await run_handler(stalls, slow, progress_timeout=timedelta(seconds=1))).result == "done"
    with pytest.raises(
        TimeoutError, match=r"^no progress for 0\.15 s \(progress_timeout\); the last: 0\.50 'loading'$"
    ):
        await run_handler(stalls, {"pause": 0, "standstill": True})
    with pytest.raises(TimeoutError, match="it has reported none"):
        await run_handler(pages_without_end, {}, progress_timeout=timedelta(milliseconds=20))


@handler("kit-without-end")
async def pages_without_end(ctx: TaskContext, input: dict[str, Any]) -> None:
    await asyncio.Event().wait()


@handler("kit-stubborn", timeout=timedelta(milliseconds=10))
async def stubborn(ctx: TaskContext, input: dict[str, Any]) -> None:
    while not STUBBORN.is_set():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


@handler("kit-stubborn-thread", timeout=timedelta(milliseconds=10))
def stubborn_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    STUBBORN.wait(30)


STUBBORN = threading.Event()


@pytest.mark.parametrize("function", [stubborn, stubborn_thread])
async def test_a_handler_that_ignores_everything_is_named_as_such(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending_module, "END_SECONDS", 0.1)
    STUBBORN.clear()
    try:
        with pytest.raises(HandlerDidNotEnd, match="ignored"):
            await run_handler(function)
    finally:
        STUBBORN.set()


async def test_a_test_that_is_cancelled_takes_its_handler_with_it() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await run_handler(samples.waits)  # the leak check sees whether it still runs
