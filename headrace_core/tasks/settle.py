"""Ending attempts: a batch of settlements in one transaction, every one fenced by its lease (promises G3, G4, G10)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from headrace_core.db import arrays, queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.tasks.model import (
    MERGE,
    TASK,
    Complete,
    Fail,
    Plan,
    Publication,
    Reschedule,
    Settled,
    Settlement,
    Settlements,
    UnitId,
    Wake,
)
from headrace_core.tasks.renew import lease_columns
from headrace_core.telemetry import metrics

_SQL = queries.load("headrace_core.tasks", "sql/settle.sql")
T = TypeVar("T", Complete, Reschedule, Fail)


async def settle(
    db: Database,
    settlements: Sequence[Settlement],
    *,
    sharded: Sequence[str] = (),
    renewals: Mapping[UnitId, int] | None = None,
) -> Settlements:
    """Write how attempts ended; one answer each, in order, each applied only if its lease still holds.

    At most one settlement for a unit in a batch. `sharded` names the kinds whose own unit is a plan (for the history).
    `renewals` is for takeovers: the renewal count at which the lease of a unit was last seen.

    Raises:
        DatabaseUnavailable: the outcome is unknown; settling again is safe: a unit that was settled is not applied.
        DataRejected: one of the results is bad; nothing was written.
    """

    if all(isinstance(item, Complete) and item.lease.unit_id.unit == TASK for item in settlements):
        return await _settle_plain(db, [item for item in settlements if isinstance(item, Complete)])

    async def work(tx: Transaction) -> tuple[Settlements, list[Row]]:
        batch = _Batch(tx, list(sharded), renewals or {})
        await batch.write(settlements)
        return batch.outcome(settlements), batch.ended

    settled, ended = await db.run(work)
    # Here and not where attempts end: consumers settle, and so does the relay that takes over from them.
    count_ends(ended)
    _count_charges(settlements, settled)
    return settled


def count_ends(rows: Iterable[Row], state: str = "COMPLETED") -> None:
    """Note how long tasks took, after the commit that ended them; `state` is for rows that do not say it."""
    took: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["took"] is not None:
            took[row["queue"], row.get("state", state)].append(row["took"])
    for labels, seconds in took.items():
        metrics.task_seconds.labels(*labels).observe_many(seconds)


def _count_charges(settlements: Sequence[Settlement], settled: Settlements) -> None:
    for reason, number in Counter(settled.failed).items():
        metrics.dead_letters_total.labels(reason).inc(number)
    charged = Counter(
        (item.charge, "failed" if isinstance(item, Fail) else "retry")
        for item, answer in zip(settlements, settled.answers, strict=True)
        if answer.applied and isinstance(item, Fail | Reschedule)
    )
    for (budget, follows), number in charged.items():
        metrics.attempts_charged_total.labels(budget, follows).inc(number)


async def _settle_plain(db: Database, completed: Sequence[Complete]) -> Settlements:
    """Plain tasks that are done, which is most of them: one statement locks and changes each row, in their order."""
    ordered = sorted(completed, key=lambda item: item.lease.unit_id.task_id.int)
    rows = await db.fetch(_SQL["complete_tasks"], _completions(ordered))
    count_ends(rows)
    sequences: dict[UUID, int] = {row["task_id"]: row["sequence"] for row in rows}
    answers = [Settled(item.lease.unit_id.task_id in sequences, None) for item in completed]
    return Settlements(answers, [], [Wake(task_id, sequence) for task_id, sequence in sequences.items()])


async def lock_tasks(tx: Transaction, task_ids: Sequence[UUID]) -> None:
    """Lock the task rows, in the order of their ids. First in every transaction that takes sequences."""
    await tx.fetch(_SQL["lock_tasks"], {"tasks": sorted(set(task_ids))})


async def end_tasks(
    tx: Transaction,
    ends: Sequence[TaskEnd],
    state: str,
    sharded: Sequence[str] = (),
) -> list[Row]:
    """The terminal transition to FAILED, CANCELLED or EXPIRED of tasks whose rows `tx` has locked.

    One row for each that had not ended: task_id, sequence, generation, state, queue, priority, and how long it `took`,
    for `count_ends` after the commit.
    """
    params = {
        "tasks": [end.task_id for end in ends],
        "reasons": [end.reason for end in ends],
        "errors": [end.error.decode() if end.error else None for end in ends],
        "units": [end.unit for end in ends],
        "attempts": [end.attempt for end in ends],
        "state": state,
        "sharded": list(sharded),
    }
    return await tx.fetch(_SQL["end_tasks"], params)


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """A task that is to end: why, and which unit's attempt was the cause. `error` is JSON text."""

    task_id: UUID
    reason: str
    error: bytes | None = None
    unit: int = TASK
    attempt: int = 0


@dataclass
class _Batch:
    """One transaction's worth of settlements: each kind of them is one statement, whatever their number."""

    tx: Transaction
    sharded: list[str]
    renewals: Mapping[UnitId, int]
    applied: set[UnitId] = field(default_factory=set)
    dead_letters: dict[UUID, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    ended: list[Row] = field(default_factory=list)
    publications: list[Publication] = field(default_factory=list)
    sequences: dict[UUID, int] = field(default_factory=dict)

    async def write(self, settlements: Sequence[Settlement]) -> None:
        await lock_tasks(self.tx, [item.lease.unit_id.task_id for item in settlements])
        completed = _of(Complete, settlements)
        self.ended += await self._complete(
            "complete_tasks", [item for item in completed if item.lease.unit_id.unit == TASK]
        )
        await self._complete_shards([item for item in completed if item.lease.unit_id.unit >= 0])
        self.ended += await self._complete(
            "complete_merges", [item for item in completed if item.lease.unit_id.unit == MERGE]
        )
        for plan in (item for item in settlements if isinstance(item, Plan)):
            await self._plan(plan)
        await self._reschedule(_of(Reschedule, settlements))
        await self._fail(_of(Fail, settlements))

    def outcome(self, settlements: Sequence[Settlement]) -> Settlements:
        answers = [self._answer(item) for item in settlements]
        wakes = [Wake(task_id, sequence) for task_id, sequence in self.sequences.items()]
        return Settlements(answers, self.publications, wakes, self.failed)

    def _answer(self, settlement: Settlement) -> Settled:
        unit_id = settlement.lease.unit_id
        applied = unit_id in self.applied
        return Settled(applied, self.dead_letters.get(unit_id.task_id) if applied else None)

    def _note(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.applied.add(UnitId(row["task_id"], row["unit"]))
            self._saw(row)

    def _saw(self, row: Row) -> None:
        if row["sequence"] is not None:
            self.sequences[row["task_id"]] = max(row["sequence"], self.sequences.get(row["task_id"], 0))

    async def _complete(self, statement: str, items: Sequence[Complete]) -> list[Row]:
        if not items:
            return []
        rows = await self.tx.fetch(_SQL[statement], _completions(items))
        self._note(rows)
        return rows

    async def _complete_shards(self, items: Sequence[Complete]) -> None:
        rows = await self._complete("complete_shards", items)
        await self._create_merges({row["task_id"] for row in rows if row["reached"]})

    async def _create_merges(self, task_ids: set[UUID]) -> None:
        if task_ids:
            rows = await self.tx.fetch(_SQL["create_merges"], {"tasks": sorted(task_ids)})
            self.publications += [_publication(row) for row in rows]

    async def _plan(self, plan: Plan) -> None:
        params: dict[str, Any] = {
            "task": plan.lease.unit_id.task_id,
            "epoch": plan.lease.epoch,
            "holder": plan.lease.holder,
        }
        params |= {"shards": [shard.decode() for shard in plan.shards], "needed": plan.needed}
        rows = await self.tx.fetch(_SQL["plan_task"], params)
        self._note(rows)
        for row in rows:
            self.publications += [_shard_publication(row, index) for index in range(row["total_shards"])]
        if rows and plan.needed == 0:
            await self._create_merges({plan.lease.unit_id.task_id})

    async def _reschedule(self, items: Sequence[Reschedule]) -> None:
        if not items:
            return
        params = self._charged(items) | {
            "due_ins": [float(item.due_in) for item in items],
            "errors": [_text(item.error) for item in items],
            "checkpoints": [_text(item.checkpoint) for item in items],
        }
        rows = await self.tx.fetch(_SQL["reschedule"], params)
        self._note(rows)
        self.publications += [_publication(row) for row in rows if row["due_in"] <= 0]

    async def _fail(self, items: Sequence[Fail]) -> None:
        if not items:
            return
        params = self._charged(items) | {"errors": [_text(item.error) for item in items]}
        rows = await self.tx.fetch(_SQL["fail_units"], params)
        self._note(rows)
        ends = {row["task_id"]: _end_of(row) for row in reversed(rows) if row["lost"]}
        for row in await end_tasks(self.tx, list(ends.values()), "FAILED", self.sharded) if ends else []:
            self.ended.append(row)
            self.dead_letters[row["task_id"]] = f"{row['task_id']}-{row['generation']}"
            self.failed.append(ends[row["task_id"]].reason)
            self._saw(row)

    def _charged(self, items: Sequence[Reschedule] | Sequence[Fail]) -> dict[str, Any]:
        return lease_columns([item.lease for item in items]) | {
            "charges": [item.charge for item in items],
            "reasons": [item.reason for item in items],
            "renewals": [self.renewals.get(item.lease.unit_id) for item in items],
            "sharded": self.sharded,
        }


def _of(kind: type[T], settlements: Sequence[Settlement]) -> list[T]:
    return [item for item in settlements if isinstance(item, kind)]


def _completions(items: Sequence[Complete]) -> dict[str, Any]:
    return lease_columns([item.lease for item in items]) | {"results": arrays.texts([item.result for item in items])}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _publication(row: Row) -> Publication:
    return Publication(
        UnitId(row["task_id"], row["unit"]), row["queue"], row["priority"], row["resumed"], row["dispatch"]
    )


def _shard_publication(row: Row, index: int) -> Publication:
    return Publication(UnitId(row["task_id"], index), row["queue"], row["priority"], resumed=True, dispatch=1)


def _end_of(row: Row) -> TaskEnd:
    """A task ends for its unit's reason; where a quorum left room for failures, because that room is used up."""
    if not row["by_quorum"]:
        return TaskEnd(row["task_id"], row["reason"], row["error"], row["unit"], row["attempt"])
    cause = json.loads(row["error"] or b"{}")
    message = f"too many shards failed for the quorum; the last was shard {row['unit']}: {cause.get('message', '')}"
    error = json.dumps({"reason": "QUORUM_LOST", "type": cause.get("type", ""), "message": message})
    return TaskEnd(row["task_id"], "QUORUM_LOST", error.encode(), row["unit"], row["attempt"])
