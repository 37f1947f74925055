"""What follows from how an attempt ended. Pure: no clock, no chance, no I/O; the jitter is an argument.

The three budgets of promise G4 are judged here and nowhere else: failures (raised, timed out), crashes (took
their process down), interruptions (drain, lost lease, outage).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol

from headrace_core.tasks.model import Charge, ClaimedUnit, Complete, Fail, Lease, Plan, Reschedule, Settlement

MAX_INTERRUPTIONS = 100
"""So that a loop of interruptions ends as well (promise G4)."""
MAX_ERROR_BYTES = 4096


class Backoff(Protocol):
    """How long a unit waits after its n-th failure. Seconds."""

    def delay(self, failures: int, jitter: float) -> float:
        """`failures` from 1; `jitter` in [-1, 1], scaled by the configured share."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The handler returned; `result` is UTF-8 JSON."""

    result: bytes


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan returned: shards (UTF-8 JSON objects), of which `needed` must complete."""

    shards: tuple[bytes, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class Raised:
    """The handler raised. `retry_after` is in seconds: the next attempt starts no sooner."""

    type: str
    message: str
    retryable: bool = True
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The handler ran longer than its timeout, or, as `detail` says, stood still for too long."""

    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The handler took its process down; `detail` says the signal or the exit code."""

    detail: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt ended for reasons of ours. `checkpoint` is JSON text; None: keep the stored one."""

    cause: str
    checkpoint: bytes | None = None


Outcome = Succeeded | Planned | Raised | TimedOut | Crashed | Interrupted


def decide(unit: ClaimedUnit, outcome: Outcome, backoff: Backoff, jitter: float) -> Settlement:
    """The settlement that follows from `outcome`, by the unit's budgets as they were claimed."""
    match outcome:
        case Succeeded(result):
            return Complete(unit.lease, result)
        case Planned(shards, needed):
            return Plan(unit.lease, shards, needed)
        case Interrupted():
            return interrupt(unit.lease, unit.interruptions, outcome)
        case Raised(retryable=False):
            return Fail(unit.lease, "failure", "NON_RETRYABLE", _error_of(outcome, "NON_RETRYABLE"))
        case Raised() | TimedOut() | Crashed():
            return _charge(unit, outcome, backoff, jitter)


def interrupt(lease: Lease, interruptions: int, outcome: Interrupted) -> Reschedule | Fail:
    """Hand a unit back, due at once; the hundredth time it fails instead."""
    if interruptions + 1 >= MAX_INTERRUPTIONS:
        reason = "INTERRUPTED_TOO_OFTEN"
        message = f"interrupted {interruptions + 1} times; the last: {outcome.cause}"
        return Fail(lease, "interruption", reason, error_json(reason, "Interrupted", message))
    return Reschedule(lease, 0.0, "interruption", "INTERRUPTED", checkpoint=outcome.checkpoint)


def error_json(reason: str, type_: str, message: str) -> bytes:
    """An error as it is stored: JSON text, safe for Postgres, type and message (the handler's words) cut at 4 KiB."""
    error = {"reason": reason, "type": _clean(type_), "message": _clean(message)}
    return json.dumps(error, ensure_ascii=False).encode()


def _clean(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace")[:MAX_ERROR_BYTES].decode("utf-8", "ignore")


@dataclass(frozen=True, slots=True)
class _Budget:
    """A budget as this attempt finds it: what is used with it, the reasons while it lasts and when it is gone."""

    charge: Charge
    used: int
    limit: int
    reason: str
    exhausted: str


def _budget_of(unit: ClaimedUnit, outcome: Outcome) -> _Budget:
    if isinstance(outcome, Crashed):
        return _Budget("crash", unit.crashes + 1, unit.max_crashes, "CRASHED", "CRASHED")
    reason = "TIMEOUT" if isinstance(outcome, TimedOut) else "HANDLER_ERROR"
    return _Budget("failure", unit.failures + 1, unit.max_attempts, reason, "ATTEMPTS_EXHAUSTED")


def _charge(unit: ClaimedUnit, outcome: Outcome, backoff: Backoff, jitter: float) -> Reschedule | Fail:
    budget = _budget_of(unit, outcome)
    if budget.used >= budget.limit:
        return Fail(unit.lease, budget.charge, budget.exhausted, _error_of(outcome, budget.exhausted))
    delay = max(backoff.delay(budget.used, jitter), outcome.retry_after if isinstance(outcome, Raised) else 0.0)
    error = _error_of(outcome, budget.reason)
    return Reschedule(unit.lease, delay, budget.charge, budget.reason, error=error)


def _error_of(outcome: Outcome, reason: str) -> bytes:
    match outcome:
        case Raised(type=type_, message=message):
            return error_json(reason, type_, message)
        case TimedOut(seconds, detail):
            message = detail or f"the handler ran longer than its timeout of {seconds:g} s"
            return error_json(reason, "TimeoutError", message)
        case Crashed(detail):
            return error_json(reason, "Crash", detail)
        case _:
            return error_json(reason, type(outcome).__name__, "")
