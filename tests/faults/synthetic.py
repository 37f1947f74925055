"""A small made-up run that kept every promise and gives every check something to look at, and ways to bend it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.faults.model import (
    LABEL_WATCH,
    MERGE,
    TASK,
    Attempt,
    DeadLetter,
    Event,
    LedgerNote,
    Note,
    Run,
    StreamEntry,
    Unit,
)

PLAIN, FLAKY, SHARDED, FAILED, REDRIVEN, DISCARDED, CANCELLED = (
    "plain",
    "flaky",
    "sharded",
    "failed",
    "redriven",
    "discarded",
    "cancelled",
)
WORKER = "host/1"
OTHER = "host/2"


def result(epoch: int, value: object = 1, worker: str = WORKER) -> dict[str, Any]:
    """What a handler of the workload returns."""
    return {"epoch": epoch, "worker": worker, "value": value}


def task(name: str, state: str, sequence: int, **changes: Any) -> Unit:
    """A task's row; its key is its name."""
    fields: dict[str, Any] = {"kind": name, "key": name, "epoch": 1, "attempt": 1, "worker": WORKER}
    return Unit(task=name, unit=TASK, state=state, sequence=sequence, **(fields | changes))


def part(unit: int, **changes: Any) -> Unit:
    """A finished shard, or the merge, of the sharded task. Epochs go on from the plan's."""
    fields: dict[str, Any] = {"state": "COMPLETED", "epoch": 2, "attempt": 1, "worker": WORKER}
    fields["result"] = None if unit == MERGE else result(2)
    return Unit(task=SHARDED, unit=unit, kind=SHARDED, **(fields | changes))


def history_of(name: str, *states: str, start: int = 1, generation: int = 1, reason: str = "") -> list[Event]:
    """State events of a task; the last one is terminal where its state is."""
    ends = ("COMPLETED", "FAILED", "CANCELLED", "EXPIRED")
    return [
        Event(name, start + n, generation, TASK, "state", state, terminal=state in ends, reason=reason)
        for n, state in enumerate(states)
    ]


def ran(name: str, unit: int, epoch: int, *whats: str, attempt: int = 1, worker: str = WORKER) -> list[LedgerNote]:
    """What a handler wrote in one attempt."""
    return [LedgerNote(float(epoch), what, name, unit, epoch, attempt, worker) for what in whats]


def submitted(name: str, **wanted: Any) -> list[Note]:
    """A submit that was answered at once."""
    sent = Note(0.0, "client", "submit_sent", {"key": name, "kind": name, "wanted": wanted})
    return [sent, Note(0.1, "client", "submit_ok", {"key": name, "id": name, "created": True})]


def watched(watch: str, what: str, **fields: Any) -> Note:
    """A record of a watch of the plain task."""
    return Note(1.0, "watcher", f"watch_{what}", {"watch": watch, "id": PLAIN} | fields)


def shown(watch: str, sequence: int, state: str, **fields: Any) -> Note:
    """An event that a watch of the plain task was shown."""
    terminal = state == "COMPLETED"
    return watched(watch, "event", sequence=sequence, generation=1, state=state, terminal=terminal, **fields)


def a_run() -> Run:
    """The run: a task of each fate, and three watches."""
    return Run(
        history=tuple(_submits() + _cancels() + _watches()),
        faults=(Note(0.5, "faults", "fault_begun", {"fault": "kill", "target": "consumer-1"}),),
        ledger=tuple(_ledger()),
        units=tuple(_units()),
        events=tuple(_events()),
        attempts=tuple(_attempts()),
        dead_letters=tuple(_letters()),
        stream=(StreamEntry("failed-1", 2, "ATTEMPTS_EXHAUSTED"),),
    )


def _submits() -> list[Note]:
    names = (FLAKY, SHARDED, FAILED, REDRIVEN, DISCARDED, CANCELLED)
    answered = [note for name in names for note in submitted(name)]
    wanted = submitted(PLAIN, state=["COMPLETED"], result=1, failures=0, crashes=0, interruptions="any", shards=None)
    unanswered = [
        Note(0.2, "client", "submit_sent", {"key": "unknown", "kind": PLAIN}),
        Note(0.3, "client", "submit_unknown", {"key": "unknown", "code": "UNAVAILABLE"}),
        Note(0.2, "client", "submit_sent", {"key": "refused", "kind": PLAIN}),
        Note(0.3, "client", "submit_refused", {"key": "refused", "code": "RESOURCE_EXHAUSTED", "reason": ""}),
    ]
    again = Note(0.4, "other", "submit_ok", {"key": PLAIN, "id": PLAIN, "created": False})
    return [*answered, *wanted, *unanswered, again]


def _cancels() -> list[Note]:
    return [
        Note(0.5, "client", "cancel_sent", {"id": CANCELLED}),
        Note(0.6, "client", "cancel_ok", {"id": CANCELLED, "state": "CANCELLED"}),
        Note(2.0, "client", "got", {"id": PLAIN, "state": "COMPLETED", "generation": 1, "sequence": 3}),
        Note(2.0, "client", "got", {"id": REDRIVEN, "state": "FAILED", "generation": 1, "sequence": 3}),
    ]


def _watches() -> list[Note]:
    return [
        watched("w1", "opened", after=None),
        watched("w1", "snapshot", sequence=1, generation=1, state="PENDING"),
        shown("w1", 2, "PROCESSING"),
        shown("w1", 3, "COMPLETED"),
        watched("w1", "ended", terminal=True, code=""),
        watched("w2", "opened", after=1),
        shown("w2", 2, "PROCESSING"),
        shown("w2", 3, "COMPLETED"),
        watched("w2", "ended", terminal=True, code="OK"),
        watched("w3", "opened", after=0),
        shown("w3", 1, "PENDING"),
        watched("w3", "ended", terminal=False, code="LEFT"),
        *(note for unit in _units() if unit.unit == TASK for note in _by_label(unit.task)),
    ]


def _by_label(name: str) -> list[Note]:
    """The watch by label was shown this task."""
    watch = f"{LABEL_WATCH}{name}"
    return [
        watched(watch, "opened", id=name, after=None),
        watched(watch, "ended", id=name, terminal=False, code="LEFT"),
    ]


def _ledger() -> list[LedgerNote]:
    return [
        *ran(PLAIN, TASK, 1, "started", "effect"),
        *ran(FLAKY, TASK, 1, "started", "raised"),
        *ran(FLAKY, TASK, 2, "started", "effect", attempt=2, worker=OTHER),
        *ran(SHARDED, TASK, 1, "started", "effect"),
        *ran(SHARDED, 0, 2, "started", "effect"),
        *ran(SHARDED, 1, 2, "started", "effect"),
        *ran(SHARDED, MERGE, 2, "started", "effect"),
        *ran(REDRIVEN, TASK, 1, "started", "raised"),
        *ran(REDRIVEN, TASK, 2, "started", "effect"),
    ]


def _units() -> list[Unit]:
    return [
        task(PLAIN, "COMPLETED", 3, result=result(1)),
        task(
            FLAKY,
            "COMPLETED",
            5,
            epoch=2,
            attempt=2,
            dispatch=2,
            worker=OTHER,
            failures=1,
            result=result(2, worker=OTHER),
        ),
        task(SHARDED, "COMPLETED", 5, result=result(2), total_shards=2, needed_shards=2, done_shards=2),
        part(0),
        part(1),
        part(MERGE),
        task(FAILED, "FAILED", 3, failures=1, reason="ATTEMPTS_EXHAUSTED"),
        task(REDRIVEN, "COMPLETED", 6, generation=2, epoch=2, result=result(2)),
        task(DISCARDED, "CANCELLED", 4, failures=1, reason="DISCARDED"),
        task(CANCELLED, "CANCELLED", 3),
    ]


def _events() -> list[Event]:
    planned = [
        Event(SHARDED, 3, 1, TASK, "progress", plan=True),
        Event(SHARDED, 4, 1, TASK, "progress"),
        Event(SHARDED, 5, 1, MERGE, "state", "COMPLETED", terminal=True),
    ]
    return [
        *history_of(PLAIN, "PENDING", "PROCESSING", "COMPLETED"),
        *history_of(FLAKY, "PENDING", "PROCESSING", "PENDING", "PROCESSING", "COMPLETED"),
        *history_of(SHARDED, "PENDING", "PROCESSING"),
        *planned,
        *history_of(FAILED, "PENDING", "PROCESSING", "FAILED"),
        *history_of(REDRIVEN, "PENDING", "PROCESSING", "FAILED"),
        *history_of(REDRIVEN, "PENDING", "PROCESSING", "COMPLETED", start=4, generation=2),
        *history_of(DISCARDED, "PENDING", "PROCESSING", "FAILED"),
        *history_of(DISCARDED, "CANCELLED", start=4, reason="DISCARDED"),
        *history_of(CANCELLED, "PENDING", "PROCESSING", "CANCELLED"),
    ]


def _attempts() -> list[Attempt]:
    def ended(name: str, outcome: str, reason: str) -> Attempt:
        return Attempt(name, TASK, 1, 1, 1, WORKER, outcome, reason)

    return [
        ended(FLAKY, "PENDING", "HANDLER_ERROR"),
        ended(FAILED, "FAILED", "ATTEMPTS_EXHAUSTED"),
        ended(REDRIVEN, "FAILED", "ATTEMPTS_EXHAUSTED"),
        ended(DISCARDED, "FAILED", "ATTEMPTS_EXHAUSTED"),
        ended(CANCELLED, "CANCELLED", "CANCELLED_BY_CLIENT"),
    ]


def _letters() -> list[DeadLetter]:
    def letter(name: str, resolution: str = "") -> DeadLetter:
        return DeadLetter(f"{name}-1", name, 1, "default", "ATTEMPTS_EXHAUSTED", resolution)

    return [letter(FAILED), letter(REDRIVEN, "REDRIVEN"), letter(DISCARDED, "DISCARDED")]


# -- bending it ---------------------------------------------------------------------------------------------------

Bend = Callable[[Run], Run]


def changed_unit(name: str, unit: int = TASK, **changes: Any) -> Bend:
    """Another row."""

    def bend(run: Run) -> Run:
        found = tuple(replace(row, **changes) if (row.task, row.unit) == (name, unit) else row for row in run.units)
        assert found != run.units
        return replace(run, units=found)

    return bend


def without(field: str, **facts: Any) -> Bend:
    """Without the records of `field` that have these facts."""

    def bend(run: Run) -> Run:
        kept = tuple(item for item in getattr(run, field) if any(_fact(item, k) != v for k, v in facts.items()))
        assert len(kept) < len(getattr(run, field))
        return replace(run, **{field: kept})

    return bend


def with_more(field: str, *items: Any) -> Bend:
    """With more records."""
    return lambda run: replace(run, **{field: (*getattr(run, field), *items)})


def both(*bends: Bend) -> Bend:
    """One after the other."""

    def bend(run: Run) -> Run:
        for one in bends:
            run = one(run)
        return run

    return bend


def _fact(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Note) and not hasattr(item, name) else getattr(item, name)
