"""G1: accepted is durable. Every accepted task reaches one end in each generation, and the right one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.faults.checker.index import Index, is_discard, is_ended, named
from tests.faults.model import TERMINAL, Attempt, Event, Finding, Note, Unit

NO_ANSWER: Mapping[str, Any] = {}


def lost(index: Index) -> Finding:
    """Every task that a client was told of is there and has ended; so has every other that is there."""
    missing = [
        f"{task_id} (key {key}) was accepted and is not there"
        for task_id, key in index.accepted.items()
        if task_id not in index.tasks
    ]
    open_ones = [f"{named(task)} is still {task.state}" for task in index.tasks.values() if not is_ended(task)]
    return Finding("G1", "lost", len(index.accepted.keys() | index.tasks.keys()), (*missing, *open_ones))


def two_terminal_states(index: Index) -> Finding:
    """One terminal event in each generation, the row agrees with the last, and so does what clients were shown."""
    ends = {task_id: _ends(index.events.get(task_id, [])) for task_id in index.tasks}
    wrong = [line for task_id, task in index.tasks.items() for line in _wrong_ends(task, ends[task_id])]
    shown = [line for note in _shown(index.run.history) for line in _wrong_shown(note, ends)]
    return Finding("G1", "two_terminal_states", sum(map(len, ends.values())), (*wrong, *shown))


def _ends(events: Sequence[Event]) -> dict[int, list[str]]:
    """The states in which each generation ended; the discard of a failed one belongs to its failure."""
    ends: dict[int, list[str]] = {}
    for event in events:
        states = ends.setdefault(event.generation, [])
        if event.terminal and not (is_discard(event) and states == ["FAILED"]):
            states.append(event.state or "")
    return {generation: states for generation, states in ends.items() if states}


def _wrong_ends(task: Unit, ends: Mapping[int, Sequence[str]]) -> Iterator[str]:
    for generation, states in ends.items():
        if len(states) > 1:
            yield f"{named(task)} ended {len(states)} times in generation {generation}: {', '.join(states)}"
        if generation < task.generation and states != ["FAILED"]:
            yield f"{named(task)} went on after generation {generation} ended as {', '.join(states)}"
    yield from _wrong_row(task, list(ends.get(task.generation, [])))


def _wrong_row(task: Unit, states: list[str]) -> Iterator[str]:
    discarded = task.state == "CANCELLED" and task.reason == "DISCARDED" and states == ["FAILED"]
    if is_ended(task) and states[-1:] != [task.state] and not discarded:
        yield f"{named(task)} is {task.state}, and the events of generation {task.generation} say {states}"
    if not is_ended(task) and states:
        yield f"{named(task)} is {task.state} again after {states} in generation {task.generation}"


def _shown(history: Sequence[Note]) -> list[Note]:
    told = ("got", "watch_snapshot")
    return [
        note
        for note in history
        if (note.what in told or (note.what == "watch_event" and note.get("terminal")))
        and note.get("state") in TERMINAL
        and note.get("generation") is not None
    ]


def _wrong_shown(note: Note, ends: Mapping[str, Mapping[int, Sequence[str]]]) -> Iterator[str]:
    states = ends.get(note.get("id"), NO_ANSWER).get(note.get("generation"), ())
    if note.get("state") not in states and not (note.get("state") == "CANCELLED" and "FAILED" in states):
        yield (
            f"{note.get('id')} was shown to {note.client} as {note.get('state')} in generation "
            f"{note.get('generation')}, which ended as {list(states)}"
        )


def wrong_results(index: Index) -> Finding:
    """State, result and counts are what the client who submitted it knows must come of it."""
    ended = [task for task in index.tasks.values() if is_ended(task)]
    asked = [(task, wanted) for task in ended if (wanted := index.wanted.get(task.key or "")) is not None]
    cancels = {note.get("id") for note in index.notes("cancel_sent")}
    wrong = [line for task, wanted in asked for line in _wrong_result(task, wanted, task.task in cancels)]
    return Finding("G1", "wrong_results", len(asked), tuple(wrong))


def _wrong_result(task: Unit, wanted: Mapping[str, Any], may_be_cancelled: bool) -> Iterator[str]:
    states = list(wanted.get("state") or [])
    if task.state == "CANCELLED" and may_be_cancelled:
        return
    if states and task.state not in states:
        yield f"{named(task)} is {task.state} ({task.reason}), not {' or '.join(states)}"
        return
    value = task.result.get("value") if isinstance(task.result, dict) else task.result
    if task.state == "COMPLETED" and wanted.get("result") is not None and value != wanted["result"]:
        yield f"{named(task)} has the result {value!r}, not {wanted['result']!r}"
    if wanted.get("shards") is not None and task.state == "COMPLETED" and task.total_shards != wanted["shards"]:
        yield f"{named(task)} has {task.total_shards} shards, not {wanted['shards']}"
    for budget in ("failures", "crashes", "interruptions"):
        yield from _wrong_count(task, budget, wanted.get(budget))


def _wrong_count(task: Unit, budget: str, wanted: object) -> Iterator[str]:
    found = getattr(task, budget)
    if isinstance(wanted, int) and found != wanted:
        yield f"{named(task)} has {found} {budget}, not {wanted}"


def publications_numbered(index: Index) -> Finding:
    """Each attempt that is to go on was a publication of its own: the broker drops one that repeats a number.

    A repair raises the number too and hides it, so rows are also looked at while they wait (`row_seen`).
    """
    again = {
        key: _reschedules(index.units[key], attempts) for key, attempts in index.attempts.items() if key in index.units
    }
    wrong = [
        f"{named(unit)} went on {number} times in one generation, and its dispatch number is {unit.dispatch}"
        for key, number in again.items()
        if (unit := index.units[key]).dispatch < 1 + number
    ]
    seen = [note for note in index.notes("row_seen") if note.get("state") not in TERMINAL]
    wrong += [
        f"unit {note.get('unit')} of {note.get('id')} was seen after {note.get('charges')} attempts that were charged, "
        f"and its dispatch number was {note.get('dispatch')}"
        for note in seen
        if note.get("dispatch") < 1 + note.get("charges")
    ]
    return Finding("G1", "publications_numbered", sum(again.values()) + len(seen), tuple(wrong))


def _reschedules(unit: Unit, attempts: Sequence[Attempt]) -> int:
    """How often a unit was put back; of the present generation, for a redrive may have made the row anew."""
    return sum(attempt.outcome == "PENDING" and attempt.generation == unit.generation for attempt in attempts)


def unknown_submits_resolved(index: Index) -> Finding:
    """A submit without an answer became one task or none; a refused one left nothing, and nobody made up a task."""
    unknown = {note.get("key") for note in index.notes("submit_unknown")}
    sent = {note.get("key") for note in index.notes("submit_sent")}
    refused = {note.get("key") for note in index.notes("submit_refused")} - unknown - index.answers.keys()
    twice = [f"key {key} has {len(rows)} tasks" for key, rows in index.rows_by_key.items() if len(rows) > 1]
    left = [f"key {key} was refused and has a task" for key in sorted(refused) if key in index.rows_by_key]
    made_up = [f"key {key} has a task, and nobody sent it" for key in index.rows_by_key if sent and key not in sent]
    return Finding("G1", "unknown_submits_resolved", len(unknown | refused), (*twice, *left, *made_up))


def cancelled_stays(index: Index) -> Finding:
    """Once a cancel was answered with CANCELLED the task is that for ever, and nothing of it starts any more."""
    told = [note for note in index.notes("cancel_ok") if note.get("state") == "CANCELLED"]
    wrong = [line for note in told for line in _uncancelled(index, note.get("id"))]
    return Finding("G3", "cancelled_stays", len(told), tuple(wrong))


def _uncancelled(index: Index, task_id: str) -> Iterator[str]:
    task = index.tasks.get(task_id)
    if task is None or task.state != "CANCELLED":
        yield f"{task_id} was cancelled and is {task.state if task else 'gone'}"
        return
    for unit in (task, *index.parts.get(task_id, [])):
        late = [note for note in index.ledger.get((task_id, unit.unit), []) if note.epoch > unit.epoch]
        if late:
            yield f"{named(unit)} was cancelled in epoch {unit.epoch} and started epoch {late[0].epoch}"
