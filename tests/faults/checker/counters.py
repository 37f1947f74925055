"""What happened during a run, in numbers: a run without takeovers has proven nothing about takeovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tests.faults.checker.index import Index
from tests.faults.model import TASK, Finding, Note, Run


def counters(index: Index) -> Finding:
    """The tasks that were counted; fewer than were accepted would be a hole in the table."""
    return Finding("", "counters", totals(index.run)["tasks"])


def totals(run: Run) -> Mapping[str, int]:
    """Numbers of the run by name.

    From rows and ledger: tasks, units, starts, failures, crashes, interruptions (every charge, redriven generations
    included), redrives, unrecorded_effects (a handler finished, and its lease was gone). From the last value of each
    metric in the history (`metric` records: process, name, value), added over processes: the metrics by their names.
    """
    numbers: Counter[str] = Counter()
    numbers["tasks"] = sum(unit.unit == TASK for unit in run.units)
    numbers["units"] = len(run.units)
    numbers["starts"] = sum(note.what == "started" for note in run.ledger)
    numbers["redrives"] = sum(letter.resolution == "REDRIVEN" for letter in run.dead_letters)
    numbers["unrecorded_effects"] = _unrecorded(run)
    numbers.update(_charges(run))
    numbers.update(_metrics(run.faults + run.history))
    return numbers


def _unrecorded(run: Run) -> int:
    recorded = {(unit.task, unit.unit): unit.epoch for unit in run.units if unit.state == "COMPLETED"}
    effects = [note for note in run.ledger if note.what == "effect"]
    return sum(recorded.get((note.task, note.unit), note.epoch) != note.epoch for note in effects)


def _charges(run: Run) -> Counter[str]:
    names = {"INTERRUPTED": "interruptions", "CRASHED": "crashes"}
    failures = ("HANDLER_ERROR", "TIMEOUT", "NON_RETRYABLE", "ATTEMPTS_EXHAUSTED")
    names |= dict.fromkeys(failures, "failures")
    return Counter(names[attempt.reason] for attempt in run.attempts if attempt.reason in names)


def _metrics(notes: tuple[Note, ...]) -> Counter[str]:
    last = {(note.get("process"), note.get("name")): note.get("value") for note in notes if note.what == "metric"}
    total: Counter[str] = Counter()
    for (_, name), value in last.items():
        total[name] += int(value)
    return total
