"""Background tasks: restarted or fatal, never gone without a word."""

import asyncio

import pytest

from headrace_core.runtime import supervisor as supervisor_module
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.telemetry import metrics


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_DELAY", 0.001)


def restarts(name: str) -> float:
    return metrics.REGISTRY.get_sample_value("headrace_background_restarts_total", {"name": name}) or 0.0


async def test_a_failed_task_is_started_again_and_counted() -> None:
    supervisor, recovered, calls = Supervisor(), asyncio.Event(), 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise RuntimeError("not yet")
        recovered.set()

    before = restarts("flaky")
    supervisor.spawn("flaky", work)
    async with asyncio.timeout(5):
        await recovered.wait()
    assert (calls, restarts("flaky") - before) == (4, 3)
    assert await supervisor.stop() == []


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    supervisor, recovered, calls = Supervisor(), asyncio.Event(), 0

    async def work() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            inner = asyncio.get_running_loop().create_future()
            inner.cancel()
            await inner
        recovered.set()

    supervisor.spawn("leaky", work)
    async with asyncio.timeout(5):
        await recovered.wait()
    await supervisor.stop()


async def test_a_fatal_failure_is_told_with_its_cause() -> None:
    supervisor = Supervisor()

    async def work() -> None:
        raise ValueError("the stream is gone")

    supervisor.spawn("puller", work, on_failure="stop")
    async with asyncio.timeout(5):
        failure = await supervisor.wait_failed()
    assert str(failure) == "background task 'puller' failed: ValueError: the stream is gone"
    assert isinstance(failure.__cause__, ValueError)
    assert supervisor.failure is failure
    await supervisor.stop()


async def test_a_task_that_returns_is_done() -> None:
    supervisor, calls = Supervisor(), 0

    async def work() -> None:
        nonlocal calls
        calls += 1

    task = supervisor.spawn("once", work, on_failure="stop")
    async with asyncio.timeout(5):
        await task
    assert (calls, supervisor.failure) == (1, None)
    assert await supervisor.stop() == []


async def test_stop_cancels_waits_and_is_idempotent() -> None:
    supervisor, started, cleaned = Supervisor(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    supervisor.spawn("loop", work)
    await started.wait()
    assert await supervisor.stop() == []
    assert cleaned.is_set()
    assert await supervisor.stop() == []
    with pytest.raises(RuntimeError, match="after the stop"):
        supervisor.spawn("late", work)


async def test_stop_is_bounded_and_names_what_did_not_end() -> None:
    supervisor, started, release = Supervisor(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = supervisor.spawn("stubborn", stubborn)
    await started.wait()
    assert await supervisor.stop(within=0.1) == ["stubborn"]
    release.set()
    await asyncio.wait({task}, timeout=5)


async def test_one_swallowed_cancellation_does_not_stop_the_stop() -> None:
    supervisor, started = Supervisor(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    supervisor.spawn("swallows once", work)
    await started.wait()
    assert await supervisor.stop(within=0.2) == []


async def test_a_restarting_task_can_be_stopped_during_its_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_DELAY", 3600.0)
    supervisor, failed = Supervisor(), asyncio.Event()

    async def work() -> None:
        failed.set()
        raise RuntimeError("broken")

    supervisor.spawn("broken", work)
    await failed.wait()
    assert await supervisor.stop() == []
