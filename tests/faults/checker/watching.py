"""G6, what watchers were shown: each event once, in order, to the last; holes only where they are said and true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tests.faults.checker.index import Index, is_task_state
from tests.faults.model import LABEL_WATCH, TERMINAL, Event, Finding, Note

# A client that leaves, and a client that could not reach the service, were told nothing false.
HONEST_ENDS = frozenset({"LEFT", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"})
OK = frozenset({"", "OK"})
TOO_SLOW = "too slowly"
# Of each task the status service keeps so many events for slow watchers (topic_events); the load writes small ones.
KEPT_EVENTS = 1000


def watch_order(index: Index) -> Finding:
    """Within a watch each event follows the one before, is the one in the table, and a snapshot shows its moment."""
    shown = sum(note.what == "watch_event" for note in index.run.history)
    numbered = {task_id: {event.sequence: event for event in events} for task_id, events in index.events.items()}
    wrong = [line for watch, notes in index.watches.items() for line in _disorder(watch, notes, numbered)]
    return Finding("G6", "watch_order", shown, tuple(wrong))


def _disorder(watch: str, notes: Sequence[Note], numbered: Mapping[str, Mapping[int, Event]]) -> Iterator[str]:
    position: int | None = None
    for note in notes:
        events = numbered.get(note.get("id"), {})
        if note.what == "watch_opened":
            position = note.get("after")
        elif note.what == "watch_gap":
            position = note.get("to")
        elif note.what == "watch_snapshot":
            yield from _wrong_snapshot(watch, note, position, events)
            position = note.get("sequence")
        elif note.what == "watch_event":
            yield from _wrong_event(watch, note, position, events)
            position = note.get("sequence")


def _wrong_event(watch: str, note: Note, position: int | None, events: Mapping[int, Event]) -> Iterator[str]:
    sequence = note.get("sequence")
    if position is not None and sequence != position + 1:
        yield f"{watch}: event {sequence} of {note.get('id')} came after {position}"
    event = events.get(sequence)
    if event is None:
        yield f"{watch}: event {sequence} of {note.get('id')} is not in the table"
        return
    said = (note.get("generation"), bool(note.get("terminal")), note.get("state") or None)
    if said != (event.generation, event.terminal, event.state):
        yield f"{watch}: event {sequence} of {note.get('id')} was shown as {said}, and is {event}"


def _wrong_snapshot(watch: str, note: Note, position: int | None, events: Mapping[int, Event]) -> Iterator[str]:
    sequence = note.get("sequence")
    if position is not None and sequence < position:
        yield f"{watch}: a snapshot of {note.get('id')} at {sequence} came after {position}"
    states = [event.state for number, event in sorted(events.items()) if number <= sequence and is_task_state(event)]
    if states and note.get("state") != states[-1]:
        said = f"the snapshot of {note.get('id')} at {sequence} says {note.get('state')}"
        yield f"{watch}: {said}, and it was {states[-1]}"


def watch_gaps_explained(index: Index) -> Finding:
    """A gap is said only to a watcher that was further behind than the server keeps, or where the events are gone."""
    gaps = index.notes("watch_gap")
    kept = {task_id: {event.sequence for event in events} for task_id, events in index.events.items()}
    wrong = [
        f"{note.get('watch')}: a gap of {note.get('id')} from {note.get('from')} to {note.get('to')} without a loss"
        for note in gaps
        if not _is_slow(note) and _missed(note) <= kept.get(note.get("id"), set())
    ]
    return Finding("G6", "watch_gaps_explained", len(index.watches), tuple(wrong))


def _is_slow(note: Note) -> bool:
    """Whether slowness can be the reason. A hole that is read live looks to the server like a slow watcher."""
    return TOO_SLOW in note.get("cause", "") and len(_missed(note)) >= KEPT_EVENTS


def _missed(note: Note) -> set[int]:
    return set(range(note.get("from") + 1, note.get("to") + 1))


def label_watch_shows_all(index: Index) -> Finding:
    """A watch by label over the whole run was shown every task, whatever happened to its connections."""
    if not any(watch.startswith(LABEL_WATCH) for watch in index.watches):
        return Finding("G6", "label_watch_shows_all", 0, ())
    missed = [task_id for task_id in index.tasks if f"{LABEL_WATCH}{task_id}" not in index.watches]
    wrong = [f"{task_id}: the watch by label never showed it" for task_id in missed]
    return Finding("G6", "label_watch_shows_all", len(index.tasks), tuple(wrong))


def watch_ends_with_last(index: Index) -> Finding:
    """A watch that ended by itself ended with a terminal event, the last of its generation; the others had a reason."""
    wrong = [line for watch, notes in index.watches.items() for line in _wrong_end(index, watch, notes)]
    return Finding("G6", "watch_ends_with_last", len(index.watches), tuple(wrong))


def _wrong_end(index: Index, watch: str, notes: Sequence[Note]) -> Iterator[str]:
    end = notes[-1]
    if end.what != "watch_ended":
        yield f"{watch}: it never ended"
        return
    code = end.get("code") or ""
    if code not in OK:
        if code not in HONEST_ENDS:
            yield f"{watch}: it ended with {code}"
        return
    shown = [note for note in notes if note.what in ("watch_event", "watch_snapshot")]
    # Resumed after the very end, there is nothing to show.
    last = shown[-1] if shown else notes[0]
    yield from _wrong_last(index, watch, last)


def _wrong_last(index: Index, watch: str, last: Note) -> Iterator[str]:
    task_id, sequence = last.get("id"), last.get("sequence", last.get("after"))
    events = index.events.get(task_id, [])
    is_end = last.get("terminal") or last.get("state") in TERMINAL or last.what == "watch_opened"
    at = next((event for event in events if event.sequence == sequence), None)
    if not is_end or at is None or not at.terminal:
        yield f"{watch}: it ended at {sequence} of {task_id}, which is no end"
