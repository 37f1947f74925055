"""How an attempt is ended from outside."""

import asyncio
import time
from typing import Any
from uuid import UUID

from consumer.attempt import CANCEL_GRACE_SECONDS, Attempt, Cause
from consumer.registry import RegisteredHandler
from headrace_core.tasks.model import ClaimedUnit, Lease, UnitId
from headrace_core.tasks.outcome import Interrupted, Outcome, Raised, Succeeded, TimedOut

UNIT = ClaimedUnit(
    lease=Lease(UnitId(UUID(int=1)), 1, UUID(int=2)),
    type="TASK",
    kind="k",
    queue="default",
    namespace="default",
    generation=1,
    attempt=1,
    payload=b"{}",
    checkpoint=None,
    deadline=None,
    failures=0,
    crashes=0,
    interruptions=0,
    max_attempts=3,
    max_crashes=3,
    suspect=False,
)
HANDLER = RegisteredHandler("k", "default", 60.0, "async", batch=False, origin="tests", input_model=None)


async def test_a_drain_shortens_the_grace_of_what_was_ended_before() -> None:
    attempt = Attempt(UNIT, HANDLER, None)
    resisting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    over = asyncio.create_task(attempt.until_over(resisting, lambda: None, HANDLER.timeout))
    await asyncio.sleep(0)
    attempt.end(Cause.TIMED_OUT)
    began = time.monotonic()
    attempt.end(Cause.DRAINING, 0.01)
    assert not await over
    assert time.monotonic() - began < CANCEL_GRACE_SECONDS / 2
    assert attempt.cause is Cause.TIMED_OUT, "whose fault it was stays as it was"


async def test_what_the_handler_needs_is_not_waited_for_once_it_is_to_end() -> None:
    attempt = Attempt(UNIT, HANDLER, None)
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(attempt.unless_ended(never))
    await asyncio.sleep(0)
    attempt.end(Cause.DRAINING, 0.01)
    assert not await waiting
    assert never.cancelled()


async def test_a_place_that_comes_as_the_attempt_ends_is_given_back() -> None:
    attempt, places = Attempt(UNIT, HANDLER, None), asyncio.Semaphore(1)
    attempt.end(Cause.FENCED)
    assert not await attempt.turn(places)
    assert not places.locked()


async def test_what_ends_before_its_handler_was_called_is_not_given_up_later() -> None:
    attempt, places = Attempt(UNIT, HANDLER, None), asyncio.Semaphore(0)
    given_up, grace_is_over = asyncio.Event(), asyncio.Event()
    attempt.on_given_up = given_up.set
    waiting = asyncio.create_task(attempt.turn(places))
    await asyncio.sleep(0)
    attempt.end(Cause.DRAINING, 0.01)
    asyncio.get_running_loop().call_later(0.05, grace_is_over.set)
    assert not await waiting
    await grace_is_over.wait()
    assert not given_up.is_set()


# -- async handlers, which run in the attempt's own task ---------------------------------------------------------------


def accept(value: Any) -> Outcome:
    return Succeeded(str(value).encode())


async def test_a_handler_is_interrupted_and_its_task_goes_on() -> None:
    attempt = Attempt(UNIT, HANDLER, None)

    async def live() -> Outcome | None:
        outcome = await attempt.call(asyncio.Event().wait(), 60.0, accept)
        await asyncio.sleep(0)  # what follows is no longer cancelled
        return outcome

    task = asyncio.create_task(live())
    await asyncio.sleep(0)
    attempt.end(Cause.DRAINING)
    assert await task == Interrupted(Cause.DRAINING.value)
    assert not task.cancelling()


async def test_a_handler_that_runs_out_of_time_has_timed_out() -> None:
    attempt = Attempt(UNIT, HANDLER, None)
    assert isinstance(await attempt.call(asyncio.Event().wait(), 0.01, accept), TimedOut)


async def test_an_interruption_that_comes_as_the_handler_ends_reaches_nothing_else() -> None:
    attempt = Attempt(UNIT, HANDLER, None)

    async def ends_itself() -> str:
        attempt.end(Cause.DRAINING)
        return "done"

    assert await attempt.call(ends_itself(), 60.0, accept) == Succeeded(b"done")
    await asyncio.sleep(0)


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    attempt = Attempt(UNIT, HANDLER, None)

    async def gives_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)

    outcome = await attempt.call(gives_up(), 60.0, accept)
    assert isinstance(outcome, Raised)
    assert outcome.type == "CancelledError"
    await asyncio.sleep(0)


async def test_a_handler_that_does_not_end_is_given_up_and_may_end_later() -> None:
    attempt = Attempt(UNIT, HANDLER, None)
    given_up, enough = asyncio.Event(), asyncio.Event()
    attempt.on_given_up = given_up.set

    async def resists() -> str:
        while not enough.is_set():
            try:
                await enough.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    task = asyncio.create_task(attempt.call(resists(), 60.0, accept))
    await asyncio.sleep(0)
    attempt.end(Cause.TIMED_OUT, 0.01)
    async with asyncio.timeout(5):
        await given_up.wait()
    assert attempt.given_up
    assert not task.done()
    enough.set()
    assert isinstance(await task, TimedOut)


async def test_an_abandoned_attempt_is_cancelled_for_good() -> None:
    attempt = Attempt(UNIT, HANDLER, None)
    task = asyncio.create_task(attempt.call(asyncio.Event().wait(), 60.0, accept))
    await asyncio.sleep(0)
    attempt.abandoned = True
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
