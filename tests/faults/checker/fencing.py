"""G3: effects are fenced. What is recorded was written by the latest lease, and epochs only rise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from tests.faults.checker.index import Index, UnitKey, is_ended, named
from tests.faults.model import TASK, Attempt, Finding, LedgerNote, Unit


def result_writer_is_latest_holder(index: Index) -> Finding:
    """A recorded result names the epoch and the worker of its row, was an effect of that epoch, and none came later."""
    done = [(unit, writer) for unit in index.run.units if (writer := _writer_of(index, unit)) is not None]
    wrong = [line for unit, writer in done for line in _wrong_writer(index, unit, writer)]
    return Finding("G3", "result_writer_is_latest_holder", len(done), tuple(wrong))


def _writer_of(index: Index, unit: Unit) -> Unit | None:
    """The unit whose lease must have written this unit's result; None where the result does not say who wrote it."""
    if unit.state != "COMPLETED" or not isinstance(unit.result, dict) or "epoch" not in unit.result:
        return None
    return index.finisher(unit) if unit.unit == TASK else unit


def _wrong_writer(index: Index, unit: Unit, writer: Unit) -> Iterator[str]:
    said, held = (unit.result["epoch"], unit.result.get("worker", writer.worker)), (writer.epoch, writer.worker)
    if said != held:
        yield f"{named(writer)} was completed by epoch and worker {said}, and held by {held}"
    notes = index.ledger.get((writer.task, writer.unit), [])
    if notes and not any(note.what == "effect" and note.epoch == unit.result["epoch"] for note in notes):
        yield f"{named(writer)} has a result of epoch {unit.result['epoch']}, whose handler never finished"
    latest = max((note.epoch for note in notes), default=0)
    if latest > writer.epoch:
        yield f"{named(writer)} ended in epoch {writer.epoch} and started epoch {latest}"


class _Start(NamedTuple):
    """A start as one source knows it; None where the source does not say."""

    epoch: int
    attempt: int
    worker: str
    generation: int | None


def epochs_rise_and_never_restart(index: Index) -> Finding:
    """An epoch of a unit is given out once; a later one belongs to a later attempt or a later generation."""
    keys = index.attempts.keys() | index.ledger.keys() | index.units.keys()
    starts = {key: _starts(index, key) for key in sorted(keys)}
    wrong = [line for key, found in starts.items() for line in _wrong_epochs(key, found)]
    return Finding("G3", "epochs_rise_and_never_restart", sum(map(len, starts.values())), tuple(wrong))


def _starts(index: Index, key: UnitKey) -> list[_Start]:
    found = {_of_ledger(note) for note in index.ledger.get(key, []) if note.what == "started"}
    found |= {_of_attempt(attempt) for attempt in index.attempts.get(key, [])}
    unit = index.units.get(key)
    # A row that was reset for a redrive keeps its epoch and counts its attempts anew.
    if unit is not None and unit.attempt > 0 and unit.worker:
        found.add(_Start(unit.epoch, unit.attempt, unit.worker, unit.generation))
    # What a source without the generation says is held against one that knows it.
    return sorted(found, key=lambda start: (start.epoch, start.generation is None, start.generation or 0))


def _of_ledger(note: LedgerNote) -> _Start:
    return _Start(note.epoch, note.attempt, note.worker, None)


def _of_attempt(attempt: Attempt) -> _Start:
    return _Start(attempt.epoch, attempt.attempt, attempt.worker, attempt.generation)


def _wrong_epochs(key: UnitKey, starts: list[_Start]) -> Iterator[str]:
    owners: dict[int, _Start] = {}
    for start in starts:
        first = owners.setdefault(start.epoch, start)
        if not _is_same(first, start):
            yield f"{key}: epoch {start.epoch} was given out twice: {first} and {start}"
    known = [start for start in starts if start.generation is not None]
    for before, after in pairwise(known):
        if before.epoch < after.epoch and not _is_later(before, after):
            yield f"{key}: epochs do not rise with the attempts: {before}, then {after}"


def _is_same(one: _Start, other: _Start) -> bool:
    generations = {one.generation, other.generation} - {None}
    return len(generations) <= 1 and (one.attempt, one.worker) == (other.attempt, other.worker)


def _is_later(before: _Start, after: _Start) -> bool:
    return (before.generation or 0, before.attempt) < (after.generation or 0, after.attempt)


def ended_tasks_hold_nothing(index: Index) -> Finding:
    """A task that has ended has no open unit, and no unit that has ended is held."""
    ended = [task for task in index.tasks.values() if is_ended(task)]
    open_parts = [
        f"{named(part)} is {part.state}, and its task is {task.state}"
        for task in ended
        for part in index.parts.get(task.task, [])
        if not is_ended(part)
    ]
    held = [f"{named(unit)} is {unit.state} and held" for unit in index.run.units if is_ended(unit) and unit.held]
    return Finding("G3", "ended_tasks_hold_nothing", len(ended), (*open_parts, *held))
