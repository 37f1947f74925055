"""G10: finished shards stay finished, and they are merged once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.faults.checker.index import Index, named
from tests.faults.model import MERGE, Finding, Unit


def one_merge(index: Index) -> Finding:
    """The shards that are done are counted; whoever brought the count to the quorum made the one merge."""
    planned = [task for task in index.tasks.values() if task.total_shards is not None]
    wrong = [line for task in planned for line in _wrong_merge(task, index.parts.get(task.task, []))]
    return Finding("G10", "one_merge", len(planned), tuple(wrong))


def _wrong_merge(task: Unit, parts: Sequence[Unit]) -> Iterator[str]:
    merges = [part for part in parts if part.unit == MERGE]
    done = sum(part.unit >= 0 and part.state == "COMPLETED" for part in parts)
    if done != task.done_shards:
        yield f"{named(task)} counts {task.done_shards} shards done, and {done} are"
    if done >= (task.needed_shards or 0) and not merges and task.state not in ("CANCELLED", "EXPIRED", "FAILED"):
        yield f"{named(task)} has {done} of {task.needed_shards} shards done and no merge"
    if merges and done < (task.needed_shards or 0):
        yield f"{named(task)} has a merge with {done} of {task.needed_shards} shards done"
    states = [merge.state for merge in merges]
    if len(merges) > 1 or (task.state == "COMPLETED") != (states == ["COMPLETED"]):
        yield f"{named(task)} is {task.state}, and its merges are {states}"


def finished_shards_not_rerun(index: Index) -> Finding:
    """After a part was recorded no later epoch of its shard starts, in whatever generation keeps it."""
    finished = [unit for unit in index.run.units if unit.unit >= 0 and unit.state == "COMPLETED"]
    wrong = [
        f"{named(unit)} was finished in epoch {unit.epoch} and started again as {note.epoch}"
        for unit in finished
        for note in index.ledger.get((unit.task, unit.unit), [])
        if note.what == "started" and note.epoch > unit.epoch
    ]
    return Finding("G10", "finished_shards_not_rerun", len(finished), tuple(wrong))
