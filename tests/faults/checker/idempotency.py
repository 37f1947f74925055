"""G2: submit is idempotent. One key, one task, whoever asks, however often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.checker.index import Index
from tests.faults.model import Finding, Note


def idempotency(index: Index) -> Finding:
    """Every answer to a key names one task, which was new to one answer at most and carries the key."""
    wrong = [line for key, answers in index.answers.items() for line in _wrong_key(index, key, answers)]
    keys_of: dict[str, set[str]] = {}
    for note in index.notes("submit_ok"):
        keys_of.setdefault(note.get("id"), set()).add(note.get("key"))
    shared = [
        f"{task_id} is the answer to the keys {sorted(keys)}" for task_id, keys in keys_of.items() if len(keys) > 1
    ]
    return Finding("G2", "idempotency", len(index.answers), (*wrong, *shared))


def _wrong_key(index: Index, key: str, answers: Sequence[Note]) -> Iterator[str]:
    ids = sorted({answer.get("id") for answer in answers})
    if len(ids) > 1:
        yield f"key {key} was answered with {len(ids)} tasks: {', '.join(ids)}"
    if sum(bool(answer.get("created")) for answer in answers) > 1:
        yield f"key {key} was new more than once"
    for task_id in ids:
        task = index.tasks.get(task_id)
        if task is not None and task.key != key:
            yield f"key {key} was answered with {task_id}, which carries the key {task.key}"
