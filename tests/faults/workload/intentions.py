"""What the clients are going to do with each task, decided before anything starts: a seed is a list of intentions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Priority = Literal["low", "normal", "high"]
Redrive = Literal["", "same", "healed"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high")
REDRIVES: tuple[Redrive, ...] = ("", "same", "healed")
LABELS = {"workload": "faults"}
COMPLETED = ["COMPLETED"]


@dataclass(frozen=True, slots=True)
class Intention:
    """One task: its request, what must become of it, and what the clients do to it meanwhile. Times are seconds.

    `wanted` goes into the history as it is: the states that are legal, and the result's value, failures, crashes and
    shards where they are certain. `patience`: how often a submit without an answer is sent again. `repeats` are later
    submits of the same key, by other clients. `looks` are watches: each begins after its pause and leaves after so many
    events (0: stays to the end).
    """

    key: str
    kind: str
    payload: dict[str, Any]
    wanted: dict[str, Any]
    priority: Priority = "normal"
    delay: float | None = None
    deadline: float | None = None
    max_attempts: int | None = None
    patience: int = 0
    repeats: tuple[float, ...] = ()
    cancel_after: float | None = None
    redrive: Redrive = ""
    looks: tuple[tuple[float, int], ...] = ()
    batch: int = 0
    """Of the number of tasks in the call: 0 for a call of its own."""


Maker = Callable[[random.Random, int], Intention]


def wanted(
    states: list[str],
    result: Any = None,
    failures: int | None = None,
    crashes: int | None = 0,
    shards: int | None = None,
) -> dict[str, Any]:
    """What must become of a task; None leaves it open."""
    return {
        "state": states,
        "result": result,
        "failures": failures,
        "crashes": crashes,
        "interruptions": "any",
        "shards": shards,
    }


def plain(rng: random.Random, n: int) -> Intention:
    """A task that works at the first attempt, on the loop, in a thread or in a process."""
    kind, factor = rng.choice((("plain", 2), ("plain", 2), ("thread", 3), ("process", 5)))
    payload = {"n": n, "work": round(rng.uniform(0.0, 0.4), 3)}
    return _intention(n, f"faults.{kind}", payload, wanted(COMPLETED, n * factor, failures=0))


def slow(rng: random.Random, n: int) -> Intention:
    """A task of some seconds, in steps with checkpoints."""
    steps = rng.randint(4, 16)
    payload = {"n": n, "work": 0.25, "steps": steps}
    return _intention(n, "faults.slow", payload, wanted(COMPLETED, n + steps, failures=0))


def sharded(rng: random.Random, n: int) -> Intention:
    """A task in parts, none of which fails."""
    count = rng.choice((0, 1, 2, 5, 12))
    payload = {"n": n, "work": round(rng.uniform(0.0, 0.5), 3), "count": count}
    value = sum((n + index) ** 2 for index in range(count))
    return _intention(n, "faults.sharded", payload, wanted(COMPLETED, value, failures=0, shards=count))


def sharded_failing(rng: random.Random, n: int) -> Intention:
    """A task in parts, one of which fails until its budget is gone; a redrive runs only what is missing.

    An interruption takes epochs too, so the part may succeed earlier.
    """
    count = rng.randint(3, 8)
    payload = {"n": n, "work": 0.1, "count": count, "bad": rng.randrange(count), "until_epoch": 3}
    value = sum((n + index) ** 2 for index in range(count))
    task = _intention(n, "faults.sharded", payload, wanted(["COMPLETED", "FAILED"], value, shards=count))
    return replace(task, redrive="same")


def flaky(rng: random.Random, n: int) -> Intention:
    """A task that fails once or twice and then works."""
    times = rng.randint(1, 2)
    payload = {"n": n, "work": 0.05, "times": times}
    return _intention(n, "faults.flaky", payload, wanted(COMPLETED, n * 7))


def batch(rng: random.Random, n: int) -> Intention:
    """A task that shares its call of the handler with others; some fail once while their neighbours work."""
    payload = {"n": n, "work": round(rng.uniform(0.0, 0.2), 3), "times": rng.choice((0, 0, 0, 1))}
    return _intention(n, "faults.batch", payload, wanted(COMPLETED, n * 17))


def hopeless(rng: random.Random, n: int) -> Intention:
    """A task that fails for good, and is perhaps redriven, in vain or with a payload that works."""
    redrive = rng.choice(REDRIVES)
    at_once = rng.random() < 0.5
    attempts = rng.choice((None, 1, 2))
    payload = {"n": n, "work": 0.02, "at_once": at_once}
    failures = 1 if at_once else attempts or 3
    states = ["FAILED", "COMPLETED"] if redrive == "healed" else ["FAILED"]
    ends = wanted(states, failures=None if redrive == "healed" else failures)
    return replace(_intention(n, "faults.hopeless", payload, ends), redrive=redrive, max_attempts=attempts)


def crashing(rng: random.Random, n: int) -> Intention:
    """A task that takes its process down: once or twice, or until it is quarantined."""
    times = rng.choice((1, 2, 99))
    ends = wanted(["FAILED"], crashes=3) if times == 99 else wanted(COMPLETED, n * 13, failures=0, crashes=None)
    return _intention(n, "faults.crash", {"n": n, "times": times}, ends)


def cancelled(rng: random.Random, n: int) -> Intention:
    """A task that somebody cancels, perhaps too late."""
    task = rng.choice((plain, slow, sharded))(rng, n)
    either = {**task.wanted, "state": ["CANCELLED", "COMPLETED"]}
    return replace(task, wanted=either, cancel_after=round(rng.uniform(0.0, 2.0), 2))


def expiring(rng: random.Random, n: int) -> Intention:
    """A task of some seconds with a deadline that it may miss."""
    task = slow(rng, n)
    either = {**task.wanted, "state": ["EXPIRED", "COMPLETED"]}
    return replace(task, wanted=either, deadline=round(rng.uniform(1.0, 4.0), 2))


def quorum(rng: random.Random, n: int) -> Intention:
    """A task in parts of which some fail at once, and enough remain. Which parts are merged is a matter of time."""
    count = rng.randint(5, 10)
    payload = {"n": n, "work": round(rng.uniform(0.0, 0.3), 3), "count": count}
    return _intention(n, "faults.quorum", payload, wanted(COMPLETED, failures=0, shards=count))


def delayed(rng: random.Random, n: int) -> Intention:
    """A task for later."""
    return replace(plain(rng, n), delay=round(rng.uniform(0.5, 8.0), 2))


MAKERS: Mapping[str, Maker] = {
    maker.__name__: maker
    for maker in (
        plain,
        slow,
        batch,
        sharded,
        sharded_failing,
        flaky,
        hopeless,
        crashing,
        cancelled,
        expiring,
        quorum,
        delayed,
    )
}


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each maker is drawn, and how busy the clients are with what it makes. Shares are from 0 to 1."""

    weights: Mapping[str, int] = field(
        default_factory=lambda: {
            "plain": 40,
            "slow": 10,
            "batch": 8,
            "sharded": 10,
            "sharded_failing": 3,
            "flaky": 8,
            "hopeless": 6,
            "crashing": 3,
            "cancelled": 8,
            "expiring": 4,
            "quorum": 3,
            "delayed": 6,
        }
    )
    repeated: float = 0.15
    watched: float = 0.25
    batched: float = 0.2


def intentions(seed: int, mix: Mix) -> Iterator[Intention]:
    """What to do, one task after the other, without an end; tasks of one batch follow each other."""
    rng = random.Random(f"{seed}/workload")
    number = 0
    while True:
        size = rng.randint(2, 12) if rng.random() < mix.batched / 5 else 0
        for _ in range(max(size, 1)):
            yield replace(_intention_of(rng, number, mix), batch=size)
            number += 1


def _intention_of(rng: random.Random, number: int, mix: Mix) -> Intention:
    (name,) = rng.choices(list(mix.weights), list(mix.weights.values()))
    task = MAKERS[name](rng, number)
    return replace(
        task,
        priority=rng.choice(PRIORITIES),
        patience=rng.choice((0, 3, 5)),
        repeats=tuple(round(rng.uniform(0.0, 5.0), 2) for _ in range(_times(rng, mix.repeated))),
        looks=tuple(_look(rng) for _ in range(_times(rng, mix.watched))),
    )


def _times(rng: random.Random, share: float) -> int:
    return rng.randint(1, 3) if rng.random() < share else 0


def _look(rng: random.Random) -> tuple[float, int]:
    return round(rng.uniform(0.0, 2.0), 2), rng.choice((0, 0, 1, 3))


def _intention(n: int, kind: str, payload: dict[str, Any], ends: dict[str, Any]) -> Intention:
    return Intention(f"task-{n}", kind, payload, ends)
