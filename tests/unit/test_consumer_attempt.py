"""How an attempt is ended from outside."""

import asyncio
import time
from uuid import UUID

from consumer.attempt import CANCEL_GRACE_SECONDS, Attempt, Cause
from consumer.registry import RegisteredHandler
from headrace_core.tasks.model import ClaimedUnit, Lease, UnitId

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
