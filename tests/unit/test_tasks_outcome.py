"""What follows from how an attempt ended: the three budgets, by properties."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_core.tasks.model import ClaimedUnit, Complete, Fail, Lease, Plan, Reschedule, Settlement, UnitId
from headrace_core.tasks.outcome import (
    MAX_ERROR_BYTES,
    MAX_INTERRUPTIONS,
    Crashed,
    Interrupted,
    Outcome,
    Planned,
    Raised,
    Succeeded,
    TimedOut,
    decide,
    error_json,
)

LEASE = Lease(UnitId(UUID(int=1)), 1, UUID(int=2))
UNIT = ClaimedUnit(
    lease=LEASE,
    type="TASK",
    kind="k",
    queue="q",
    namespace="n",
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


class OneSecond:
    def delay(self, failures: int, jitter: float) -> float:
        return 1.0 * failures + jitter


def settle(outcome: Outcome, **budgets: Any) -> Settlement:
    return decide(UNIT._replace(**budgets), outcome, OneSecond(), 0.0)


def test_success_and_plan_are_written_as_they_are() -> None:
    assert settle(Succeeded(b"1")) == Complete(LEASE, b"1")
    assert settle(Planned((b"{}",), 1)) == Plan(LEASE, (b"{}",), 1)


@given(failures=st.integers(0, 10), limit=st.integers(1, 10))
def test_exactly_max_attempts_failures_end_a_unit(failures: int, limit: int) -> None:
    answer = settle(Raised("ValueError", "x"), failures=failures, max_attempts=limit)
    assert isinstance(answer, Fail if failures + 1 >= limit else Reschedule)
    assert isinstance(answer, Fail | Reschedule)
    assert answer.charge == "failure"


@given(crashes=st.integers(0, 5), failures=st.integers(0, 5), interruptions=st.integers(0, 98))
def test_no_budget_is_charged_for_another(crashes: int, failures: int, interruptions: int) -> None:
    used = {"crashes": crashes, "failures": failures, "interruptions": interruptions}
    limits = {"max_attempts": 6, "max_crashes": 6}
    charges = [
        answer.charge
        for outcome in (Raised("E", ""), TimedOut(1), Crashed("SIGSEGV"), Interrupted("drain"))
        if isinstance(answer := settle(outcome, **used, **limits), Reschedule | Fail)
    ]
    assert charges == ["failure", "failure", "crash", "interruption"]


def test_an_interruption_is_due_at_once_and_the_hundredth_is_the_last() -> None:
    first = settle(Interrupted("drain", b"[1]"))
    assert first == Reschedule(LEASE, 0.0, "interruption", "INTERRUPTED", checkpoint=b"[1]")
    last = settle(Interrupted("drain"), interruptions=MAX_INTERRUPTIONS - 1)
    assert isinstance(last, Fail)
    assert last.reason == "INTERRUPTED_TOO_OFTEN"


def test_a_non_retryable_error_ends_the_first_attempt() -> None:
    answer = settle(Raised("Bad", "no", retryable=False))
    assert isinstance(answer, Fail)
    assert json.loads(answer.error) == {"reason": "NON_RETRYABLE", "type": "Bad", "message": "no"}


@pytest.mark.parametrize(("asked", "due"), [(0.2, 1.0), (7.5, 7.5)])
def test_retry_after_is_a_lower_bound(asked: float, due: float) -> None:
    answer = settle(Raised("RateLimited", "429", retry_after=asked))
    assert isinstance(answer, Reschedule)
    assert answer.due_in == due


@given(st.text())
def test_any_text_becomes_an_error_that_postgres_takes(text: str) -> None:
    stored = json.loads(error_json("R", "T", text))
    assert "\x00" not in stored["message"]
    assert len(stored["message"].encode()) <= MAX_ERROR_BYTES
