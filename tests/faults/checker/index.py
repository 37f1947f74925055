"""A run, ordered for the checks: by task, by key, by watch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from tests.faults.model import MERGE, TASK, TERMINAL, Attempt, DeadLetter, Event, LedgerNote, Note, Run, Unit

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
UnitKey = tuple[str, int]


@dataclass(frozen=True)
class Index:
    """Views of one run; each is made when it is first asked for."""

    run: Run

    @cached_property
    def tasks(self) -> Mapping[str, Unit]:
        """The task's own row by id."""
        return {unit.task: unit for unit in self.run.units if unit.unit == TASK}

    @cached_property
    def units(self) -> Mapping[UnitKey, Unit]:
        """Every row by task and unit."""
        return {(unit.task, unit.unit): unit for unit in self.run.units}

    @cached_property
    def parts(self) -> Mapping[str, list[Unit]]:
        """Shards and merge by task."""
        return grouped((unit for unit in self.run.units if unit.unit != TASK), lambda unit: unit.task)

    @cached_property
    def events(self) -> Mapping[str, list[Event]]:
        """By task, in the order of their sequences."""
        return grouped(sorted(self.run.events, key=lambda event: event.sequence), lambda event: event.task)

    @cached_property
    def attempts(self) -> Mapping[UnitKey, list[Attempt]]:
        """By unit, in the order of their epochs."""
        ordered = sorted(self.run.attempts, key=lambda attempt: attempt.epoch)
        return grouped(ordered, lambda attempt: (attempt.task, attempt.unit))

    @cached_property
    def ledger(self) -> Mapping[UnitKey, list[LedgerNote]]:
        """By unit, in the order of time."""
        return grouped(sorted(self.run.ledger, key=lambda note: note.at), lambda note: (note.task, note.unit))

    @cached_property
    def letters(self) -> Mapping[str, list[DeadLetter]]:
        """By task; a message that was no task is left out."""
        return grouped((letter for letter in self.run.dead_letters if letter.task), lambda letter: letter.task or "")

    @cached_property
    def answers(self) -> Mapping[str, list[Note]]:
        """submit_ok by key."""
        return grouped(self.notes("submit_ok"), lambda note: note.get("key"))

    @cached_property
    def accepted(self) -> Mapping[str, str]:
        """The key of every task that a client was told of, by its id."""
        return {note.get("id"): note.get("key") for note in self.notes("submit_ok")}

    @cached_property
    def rows_by_key(self) -> Mapping[str, list[Unit]]:
        """The tasks of each idempotency key."""
        return grouped((task for task in self.tasks.values() if task.key), lambda task: task.key or "")

    @cached_property
    def wanted(self) -> Mapping[str, Mapping[str, Any]]:
        """What must become of a task, by its key."""
        return {note.get("key"): note.get("wanted") for note in self.notes("submit_sent") if note.get("wanted")}

    @cached_property
    def watches(self) -> Mapping[str, list[Note]]:
        """The records of each watch, in the order in which its client wrote them."""
        about = (note for note in self.run.history if note.what.startswith("watch_"))
        return grouped(about, lambda note: note.get("watch"))

    def notes(self, what: str) -> list[Note]:
        """The records of one kind."""
        return [note for note in self.run.history if note.what == what]

    def finisher(self, task: Unit) -> Unit | None:
        """The unit whose lease wrote a task's result: the merge of a sharded one, else the task's own."""
        return task if task.total_shards is None else self.units.get((task.task, MERGE))


def grouped(items: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    """Items by key, in their order."""
    groups: defaultdict[K, list[V]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def is_ended(unit: Unit) -> bool:
    """Whether the unit is in a terminal state."""
    return unit.state in TERMINAL


def is_task_state(event: Event) -> bool:
    """Whether the event changes the task's own state; a terminal one names the unit that caused it."""
    return event.type == "state" and (event.unit == TASK or event.terminal)


def is_discard(event: Event) -> bool:
    """Whether the event closes a failed task for good: the one way out of an end within a generation."""
    return event.state == "CANCELLED" and event.reason == "DISCARDED"


def named(unit: Unit) -> str:
    """The unit, for a violation."""
    part = {TASK: "", MERGE: " merge"}.get(unit.unit, f" shard {unit.unit}")
    return f"{unit.kind} {unit.task}{part}"
