"""Dead letters: what failed for good, and its two ways out (promise G5, design rule 16).

A dead letter is written where its task ends (settle). Here it is looked at, redriven, discarded, and kept in step with
the DLQ stream. Whoever changes one locks its task's row first, in the order of ids, as everybody does who ends tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.errors import DeadLetterResolved, DeadlinePassed, DomainError, InvalidFields, Violation
from headrace_core.tasks.audit import Action
from headrace_core.tasks.model import TASK, Publication, TaskRecord, UnitId, Wake
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.reading import AttemptRecord
from headrace_core.tasks.records import read_records
from headrace_core.tasks.settle import lock_tasks

_SQL = queries.load("headrace_core.tasks", "sql/dead_letters.sql")
_MERGES = queries.load("headrace_core.tasks", "sql/settle.sql")["create_merges"]
MAX_ATTEMPTS = 1000
MAX_MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An entry. `task_id` is None and `generation` 0 where a message was no task. JSON columns are raw text."""

    id: str
    task_id: UUID | None
    generation: int
    namespace: str
    queue: str
    kind: str
    reason: str
    error: bytes | None
    budgets: bytes
    created_at: datetime
    published_at: datetime | None
    resolved_at: datetime | None
    resolution: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries: every field that is not None must match."""

    namespace: str | None = None
    queue: str | None = None
    kind: str | None = None
    reason: str | None = None
    failed_before: datetime | None = None
    include_resolved: bool = False
    within: tuple[str, ...] | None = None
    """The namespaces that whoever asks may look into; None: all, and what has none."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """An entry that is to be redriven or discarded."""

    id: str
    task_id: UUID | None
    generation: int


@dataclass(frozen=True, slots=True)
class Turn:
    """An entry whose turn under a rate has come, with the deadline that its task is to get."""

    letter: Chosen
    deadline: datetime | None


class Traced(NamedTuple):
    """What a span about a task says of it, and the trace context that its row has."""

    task_id: UUID
    trace_context: str | None
    namespace: str
    queue: str
    kind: str
    generation: int


@dataclass(frozen=True, slots=True)
class Redriven:
    """A batch that was redriven: the tasks as they are now, what to publish, whom to wake."""

    tasks: list[TaskRecord]
    publications: list[Publication]
    wakes: list[Wake]


@dataclass(frozen=True, slots=True)
class Discarded:
    """How many entries were closed, and whom to wake."""

    count: int
    wakes: list[Wake]


async def list_letters(
    db: Database, wanted: Filter, limit: int, after: tuple[datetime, str] | None
) -> list[DeadLetter]:
    """Up to `limit` entries, newest first, from behind the entry (created_at, id)."""
    params = _filter_params(wanted) | {
        "include_resolved": wanted.include_resolved,
        "after_time": after[0] if after else None,
        "after_id": after[1] if after else None,
        "limit": limit,
    }
    return [DeadLetter(**row) for row in await db.fetch(_SQL["list_letters"], params)]


async def find_letters(db: Database, letter_ids: Sequence[str], task_ids: Sequence[UUID]) -> dict[str, DeadLetter]:
    """Entries by the id that was asked for; a task's id stands for its latest entry. Unknown ids are missing."""
    rows = await db.fetch(_SQL["find_letters"], {"letters": list(letter_ids), "tasks": list(task_ids)})
    return {row.pop("asked"): DeadLetter(**row) for row in rows}


async def match_letters(db: Database, wanted: Filter, limit: int) -> list[Chosen]:
    """Up to `limit` open entries that match, oldest first, without those that wait for their turn under a rate."""
    rows = await db.fetch(_SQL["match_letters"], _filter_params(wanted) | {"limit": limit})
    return [Chosen(**row) for row in rows]


async def redrivable(
    db: Database, letters: Sequence[Chosen], *, deadline: datetime | None, strict: bool
) -> list[Chosen]:
    """Those that `redrive` would take now. Raises as it does."""
    return await db.run(lambda tx: _redrivable(tx, letters, deadline, strict=strict))


async def read_content(db: Database, letter: DeadLetter) -> tuple[bytes, list[AttemptRecord]]:
    """The payload (or the message's bytes) and the attempts of the generation that failed, oldest first."""
    (row,) = await db.fetch(_SQL["content"], {"id": letter.id})
    params = {"task": letter.task_id, "generation": letter.generation, "limit": MAX_ATTEMPTS}
    attempts = await db.fetch(_SQL["history"], params) if letter.task_id else []
    content = row["payload"] if letter.task_id else row["message"]
    return bytes(content or b""), [AttemptRecord(**attempt) for attempt in attempts]


async def trace_contexts(db: Database, task_ids: Sequence[UUID]) -> list[Traced]:
    """Those of the tasks that exist. Asked only where traces are on."""
    return await db.fetch_as(Traced, _SQL["trace_contexts"], {"tasks": list(task_ids)})


async def redrive(
    db: Database,
    letters: Sequence[Chosen],
    *,
    deadline: datetime | None = None,
    payload: bytes | None = None,
    strict: bool = False,
    traces: Mapping[UUID, str] = MappingProxyType({}),
    action: Action | None = None,
) -> Redriven:
    """Give failed tasks a new generation with fresh budgets, in one transaction.

    A plain task, or one that failed before its plan was done, or one that gets a new `payload` (which drops plan and
    parts), is PENDING afterwards. A sharded one with a plan passes through PENDING to PROCESSING without a holder, as
    after its plan: its finished shards stay, and only what had not finished is PENDING again. `deadline` replaces the
    tasks' own, `traces` their trace contexts. What cannot be redriven is left out, unless `strict`.

    Raises, if `strict`, and then nothing has changed:
        DeadLetterResolved: one of them was redriven or discarded before.
        DeadlinePassed: one of the tasks, or the new deadline, is past it.
        InvalidFields: one of them has no task.
    """

    async def work(tx: Transaction) -> Redriven:
        await lock_tasks(tx, [letter.task_id for letter in letters if letter.task_id])
        chosen = await _redrivable(tx, letters, deadline, strict=strict)
        task_ids = [letter.task_id for letter in chosen]
        await tx.execute(_SQL["keep_attempts"], {"tasks": task_ids, "dropping": payload is not None})
        params = {
            "letters": [letter.id for letter in chosen],
            "tasks": task_ids,
            "traces": [traces.get(task_id) for task_id in task_ids if task_id] if traces else [],
            "deadline": deadline,
            "payload": payload.decode() if payload is not None else None,
        }
        rows = await tx.fetch(_SQL["redrive"], params) if chosen else []
        rows += await _missing_merges(tx, rows)
        records = await read_records(tx, task_ids)
        if action is not None:
            changed = {"payload": "replaced"} if payload is not None else {}
            await action.note(tx, {"redriven": action.done + len(task_ids)} | changed)
        return Redriven(
            [records[task_id] for task_id in task_ids if task_id in records],
            [_publication(row, traces) for row in rows if row["unit"] != TASK or not row["planned"]],
            [Wake(row["task_id"], row["sequence"]) for row in rows if row["unit"] == TASK],
        )

    return await db.run(work)


async def discard(db: Database, letters: Sequence[Chosen], action: Action | None = None) -> Discarded:
    """Close open entries for good, in one transaction; their tasks become CANCELLED, reason DISCARDED."""

    async def work(tx: Transaction) -> Discarded:
        await lock_tasks(tx, [letter.task_id for letter in letters if letter.task_id])
        rows = await tx.fetch(_SQL["discard"], {"letters": [letter.id for letter in letters]})
        if action is not None:
            await action.note(tx, {"discarded": action.done + len(rows)})
        return Discarded(len(rows), [Wake(row["task_id"], row["sequence"]) for row in rows if row["sequence"]])

    return await db.run(work)


async def schedule(
    db: Database, letters: Sequence[Chosen], rate: float, deadline: datetime | None, action: Action | None = None
) -> None:
    """Give each entry its turn, `rate` a second, the first one interval from now."""
    params = {
        "letters": [letter.id for letter in letters],
        "delays": [(index + 1) / rate for index in range(len(letters))],
        "deadline": deadline,
    }

    async def work(tx: Transaction) -> None:
        await tx.execute(_SQL["schedule"], params)
        if action is not None:
            await action.note(tx, {"redriven": action.done, "scheduled": len(letters), "rate": rate})

    await db.run(work)


async def take_turns(db: Database, limit: int = 500) -> list[Turn]:
    """Entries whose turn under a rate has come. Redrive each, or give its turn up; else it comes again after 30 s."""
    rows = await db.fetch(_SQL["take_turns"], {"limit": limit})
    return [Turn(Chosen(row["id"], row["task_id"], row["generation"]), row["redrive_deadline"]) for row in rows]


async def give_turns_up(db: Database, letter_ids: Sequence[str]) -> None:
    """These cannot be redriven as they are: they stay open, without a turn."""
    await db.execute(_SQL["give_turns_up"], {"letters": list(letter_ids)})


async def take_unpublished(db: Database, limit: int = 500) -> list[DeadLetter]:
    """Open entries that the DLQ stream does not have yet."""
    return [DeadLetter(**row) for row in await db.fetch(_SQL["take_unpublished"], {"limit": limit})]


async def mark_published(db: Database, incarnation: int, letter_ids: Sequence[str]) -> None:
    """The DLQ stream, in this incarnation, has them."""
    params = {"incarnation": incarnation, "letters": list(letter_ids)}
    await db.execute(_SQL["mark_published"], params)


async def unmark_lost(db: Database, incarnation: int, limit: int = 5000) -> int:
    """Take the mark from open entries that an earlier incarnation of the DLQ stream had. How many, at most `limit`."""
    rows = await db.fetch(_SQL["unmark_lost"], {"incarnation": incarnation, "limit": limit})
    return len(rows)


async def unmark_published(db: Database, letter_ids: Sequence[str]) -> int:
    """Take the mark from these open entries: the DLQ stream has them no more. How many."""
    return len(await db.fetch(_SQL["unmark_published"], {"letters": list(letter_ids)}))


async def count_published(db: Database) -> int:
    """How many open entries are noted to be in the DLQ stream."""
    (row,) = await db.fetch(_SQL["count_published"])
    count: int = row["count"]
    return count


async def list_published(db: Database, after: str, limit: int) -> list[str]:
    """Ids of open entries that are noted to be in the DLQ stream, in order, from behind `after`."""
    return [row["id"] for row in await db.fetch(_SQL["list_published"], {"after": after, "limit": limit})]


async def find_open(db: Database, letter_ids: Sequence[str]) -> set[str]:
    """Those of the ids that are of open entries."""
    return {row["id"] for row in await db.fetch(_SQL["find_open"], {"letters": list(letter_ids)})}


async def take_unremoved(db: Database, limit: int = 500) -> list[tuple[str, str]]:
    """(id, queue) of closed entries that the DLQ stream may still have."""
    return [(row["id"], row["queue"]) for row in await db.fetch(_SQL["take_unremoved"], {"limit": limit})]


async def mark_removed(db: Database, letter_ids: Sequence[str]) -> None:
    """The DLQ stream no longer has them."""
    await db.execute(_SQL["mark_removed"], {"letters": list(letter_ids)})


async def record_unparseable(db: Database, letter_id: str, queue: str, message: bytes, detail: str) -> None:
    """Write the dead letter of a message that was no task. `letter_id` is of `dead_letter_id`.

    Idempotent by that id. Keeps the first 64 KiB of the message; `detail` says what was wrong with it.
    """
    params = {
        "id": letter_id,
        "queue": queue,
        "error": error_json("UNPARSEABLE_MESSAGE", "", detail).decode(),
        "message": message[:MAX_MESSAGE_BYTES],
    }
    await db.execute(_SQL["record_unparseable"], params)


async def _redrivable(
    tx: Transaction, letters: Sequence[Chosen], deadline: datetime | None, *, strict: bool
) -> list[Chosen]:
    tasks = [letter for letter in letters if letter.task_id]
    params = {
        "tasks": [letter.task_id for letter in tasks],
        "generations": [letter.generation for letter in tasks],
        "deadline": deadline,
    }
    found = {row["task_id"]: row for row in await tx.fetch(_SQL["redrivable"], params)}
    refusals = {letter.id: _refusal(letter, found.get(letter.task_id)) for letter in letters}
    if strict and any(refusals.values()):
        raise next(refusal for refusal in refusals.values() if refusal)
    return [letter for letter in letters if refusals[letter.id] is None]


def _refusal(letter: Chosen, task: Row | None) -> DomainError | None:
    """Why the entry cannot be redriven; None if it can."""
    metadata = {"id": letter.id}
    if letter.task_id is None:
        said = f"{letter.id} is a message that was no task: it can be discarded, not redriven"
        return InvalidFields(said, violations=[Violation("ids", said)], metadata=metadata)
    if task is None or not task["failed"]:
        return DeadLetterResolved(f"dead letter {letter.id} was redriven or discarded before", metadata=metadata)
    if not task["in_time"]:
        return DeadlinePassed(
            f"the deadline of task {letter.task_id} has passed; give a new one with the redrive", metadata=metadata
        )
    return None


async def _missing_merges(tx: Transaction, rows: Sequence[Row]) -> list[Row]:
    """A plan whose shards are all done and whose merge is missing: nothing was reopened, so the merge is made."""
    waiting = {row["task_id"] for row in rows if row["unit"] != TASK}
    complete = sorted(row["task_id"] for row in rows if row["planned"] and row["task_id"] not in waiting)
    if not complete:
        return []
    return [row | {"planned": True} for row in await tx.fetch(_MERGES, {"tasks": complete})]


def _publication(row: Row, traces: Mapping[UUID, str]) -> Publication:
    unit_id = UnitId(row["task_id"], row["unit"])
    trace_context = traces.get(unit_id.task_id)
    return Publication(unit_id, row["queue"], row["priority"], True, row["dispatch"], trace_context)


def _filter_params(wanted: Filter) -> dict[str, object]:
    return {
        "namespace": wanted.namespace,
        "within": None if wanted.within is None else list(wanted.within),
        "queue": wanted.queue,
        "kind": wanted.kind,
        "reason": wanted.reason,
        "failed_before": wanted.failed_before,
    }
