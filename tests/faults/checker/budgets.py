"""G4: three budgets, not one. What is charged happened, what happened to the others is not charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.checker.index import Index, UnitKey, named
from tests.faults.model import Attempt, Finding, Unit

MAX_INTERRUPTIONS = 100
# A fault may cost a unit two: the one it causes, and the one of the start alone that follows.
EACH_FAULT = 2
# A slow machine may miss a renewal without one.
SLACK = 4
# How the history names what was charged.
FAILURES = frozenset({"HANDLER_ERROR", "TIMEOUT", "NON_RETRYABLE", "ATTEMPTS_EXHAUSTED"})
CRASHES = frozenset({"CRASHED"})
# The outcomes of attempts that ended by themselves. What ran when its task ended bears the task's reason, uncharged.
CHARGED = frozenset({"PENDING", "FAILED"})


def budgets_not_mixed(index: Index) -> Finding:
    """The counts of a row are those of its attempts, and a handler that is charged with a failure did raise."""
    started = [unit for unit in index.run.units if unit.attempt > 0 or unit.failures or unit.crashes]
    wrong = [line for unit in started for line in _wrong_charges(index, unit)]
    calm = [line for key, attempts in index.attempts.items() for line in _calm(index, key, attempts)]
    return Finding("G4", "budgets_not_mixed", len(started), (*wrong, *calm))


def _wrong_charges(index: Index, unit: Unit) -> Iterator[str]:
    history = index.attempts.get((unit.task, unit.unit), [])
    own = [attempt for attempt in history if attempt.generation == unit.generation and attempt.outcome in CHARGED]
    ends = Counter(attempt.reason for attempt in own)
    for budget, reasons in (("failures", FAILURES), ("crashes", CRASHES)):
        charged, happened = getattr(unit, budget), sum(ends[reason] for reason in reasons)
        if charged != happened:
            yield f"{named(unit)} has {charged} {budget}, and its history {happened}: {dict(ends)}"


def _calm(index: Index, key: UnitKey, attempts: Sequence[Attempt]) -> Iterator[str]:
    """Charges that the ledger of the handler contradicts: a failure without a raise, a crash that it outlived."""
    notes = index.ledger.get(key, [])
    raised = {note.epoch for note in notes if note.what == "raised"}
    outlived = {note.epoch for note in notes if note.what == "cancelled"} | raised
    known = {note.epoch for note in notes}
    for attempt in attempts:
        if attempt.reason == "HANDLER_ERROR" and attempt.epoch in known - raised:
            yield f"{key} was charged {attempt.reason} for epoch {attempt.epoch}, whose handler did not raise"
        if attempt.reason in CRASHES and attempt.epoch in outlived:
            yield f"{key} was charged a crash for epoch {attempt.epoch}, whose process lived on"


def interruptions_bounded(index: Index) -> Finding:
    """No unit was interrupted out of proportion to the faults, and none as often as the bound without an end."""
    started = [unit for unit in index.run.units if unit.attempt > 0]
    faults = sum(fault.what == "fault_begun" for fault in index.run.faults)
    bound = min(MAX_INTERRUPTIONS, EACH_FAULT * faults + SLACK)
    wrong = [
        f"{named(unit)} was interrupted {unit.interruptions} times by {faults} faults"
        for unit in started
        if unit.interruptions > bound
    ]
    return Finding("G4", "interruptions_bounded", len(started), tuple(wrong))
