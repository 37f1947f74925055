"""G6, the log itself: dense, in the order of the state machine, and quiet after the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from headrace_core.tasks.model import TaskState
from headrace_core.tasks.states import may_become
from tests.faults.checker.index import Index, is_discard, is_task_state, named
from tests.faults.model import Event, Finding, Unit


def sequences_dense(index: Index) -> Finding:
    """The events of a task are numbered 1, 2, 3 … up to the number that its row says."""
    wrong = [line for task in index.tasks.values() for line in _holes(task, index.events.get(task.task, []))]
    orphans = [f"{task_id} has events and no row" for task_id in index.events.keys() - index.tasks.keys()]
    return Finding("G6", "sequences_dense", len(index.run.events), (*wrong, *orphans))


def _holes(task: Unit, events: Sequence[Event]) -> Iterator[str]:
    found = [event.sequence for event in events]
    if found != list(range(1, task.sequence + 1)):
        missing = sorted(set(range(1, task.sequence + 1)) - set(found))
        more = [number for number in found if number > task.sequence or found.count(number) > 1]
        yield f"{named(task)} is at {task.sequence}; missing {missing[:10]}, repeated or beyond {more[:10]}"


def events_after_terminal(index: Index) -> Finding:
    """The terminal event is the last of its generation (a discard may follow a failure), and generations only rise."""
    wrong = [line for task_id, events in index.events.items() for line in _late(task_id, events)]
    ends = sum(event.terminal for event in index.run.events)
    return Finding("G6", "events_after_terminal", ends, tuple(wrong))


def _late(task_id: str, events: Sequence[Event]) -> Iterator[str]:
    ended: Event | None = None
    generation = 0
    for event in events:
        if event.generation < generation:
            yield f"{task_id}: event {event.sequence} goes back to generation {event.generation}"
        if ended is not None and ended.generation == event.generation and not _closes(ended, event):
            yield f"{task_id}: event {event.sequence} ({event.type} {event.state}) follows the end at {ended.sequence}"
        generation = event.generation
        ended = event if event.terminal else ended


def _closes(ended: Event, event: Event) -> bool:
    return ended.state == "FAILED" and is_discard(event)


def transitions_exist(index: Index) -> Finding:
    """Every change of a task's state is in the table of transitions."""
    steps = [(before, after) for events in index.events.values() for before, after in _steps(events)]
    wrong = [
        f"{after.task}: {before.state} became {after.state} at event {after.sequence}"
        for before, after in steps
        if not may_become(TaskState(before.state or ""), TaskState(after.state or ""))
    ]
    return Finding("G6", "transitions_exist", len(steps), tuple(wrong))


def _steps(events: Sequence[Event]) -> Iterator[tuple[Event, Event]]:
    changes = [event for event in events if is_task_state(event)]
    return pairwise(changes)
