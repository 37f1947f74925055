"""G5: nothing fails silently. FAILED, the open dead letter and the entry in the stream are one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tests.faults.checker.index import Index, named
from tests.faults.model import DeadLetter, Finding, StreamEntry, Unit


def failed_iff_dead_letter(index: Index) -> Finding:
    """Each generation that failed has its dead letter and no other has one; open ones are those of FAILED tasks."""
    failures = {
        (event.task, event.generation) for event in index.run.events if event.terminal and event.state == "FAILED"
    }
    letters = {(letter.task, letter.generation) for letter in index.run.dead_letters if letter.task}
    silent = [f"{task} failed in generation {number} without a dead letter" for task, number in failures - letters]
    false = [
        f"{task} has a dead letter for generation {number}, which did not fail" for task, number in letters - failures
    ]
    wrong = [line for task in index.tasks.values() for line in _wrong_letters(task, index.letters.get(task.task, []))]
    return Finding("G5", "failed_iff_dead_letter", len(failures | letters), (*silent, *false, *wrong))


def _wrong_letters(task: Unit, letters: Sequence[DeadLetter]) -> Iterator[str]:
    is_open = {letter.generation for letter in letters if not letter.resolution}
    due = {task.generation} if task.state == "FAILED" else set()
    if is_open != due:
        yield f"{named(task)} is {task.state} in generation {task.generation}; open dead letters: {sorted(is_open)}"
    for letter in letters:
        if letter.resolution == "REDRIVEN" and letter.generation >= task.generation:
            yield f"{letter.id} is REDRIVEN, and {named(task)} is in generation {task.generation}"
        if letter.resolution == "DISCARDED" and (task.state, task.reason) != ("CANCELLED", "DISCARDED"):
            yield f"{letter.id} is DISCARDED, and {named(task)} is {task.state}"


def dead_letter_stream_agrees(index: Index) -> Finding:
    """The stream has one entry for each open dead letter, of its reason, and no other."""
    entries = index.run.stream
    if entries is None:
        return Finding("G5", "dead_letter_stream_agrees", 0)
    is_open = {letter.id: letter for letter in index.run.dead_letters if not letter.resolution}
    found = Counter(entry.id for entry in entries)
    missing = [f"{letter_id} is open and not in the stream" for letter_id in is_open.keys() - found.keys()]
    extra = [f"{letter_id} is in the stream and not open" for letter_id in found.keys() - is_open.keys()]
    twice = [f"{letter_id} is in the stream {number} times" for letter_id, number in found.items() if number > 1]
    other = [line for entry in entries for line in _other_reason(entry, is_open.get(entry.id))]
    return Finding(
        "G5", "dead_letter_stream_agrees", len(is_open.keys() | found.keys()), (*missing, *extra, *twice, *other)
    )


def _other_reason(entry: StreamEntry, letter: DeadLetter | None) -> Iterator[str]:
    if letter is not None and entry.reason != letter.reason:
        yield f"{entry.id} is in the stream as {entry.reason} and in the table as {letter.reason}"
