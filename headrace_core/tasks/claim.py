"""Starting units: from deliveries of the broker, or straight from Postgres. Both end in one statement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headrace_core.db import queries
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.tasks.model import (
    MERGE,
    TASK,
    TERMINAL,
    Claim,
    ClaimedUnit,
    Delivered,
    Holder,
    Lease,
    TaskState,
    UnitId,
    UnitType,
    Verdict,
    Wake,
)

_SQL = queries.load("headrace_core.tasks", "sql/claim.sql")


async def claim(db: Database, deliveries: Sequence[Delivered], holder: Holder) -> tuple[list[Claim], list[Wake]]:
    """Start what the deliveries name, in one transaction; one answer each, in order.

    Never repeat it blindly: a claim whose commit was lost is found by its lease running out.

    Raises:
        DatabaseUnavailable: nothing is known to have started.
    """
    asked = _claim_params((delivered.unit_id for delivered in deliveries), holder)
    rows = _by_unit(await db.fetch(_SQL["claim"], asked))
    return _answers(deliveries, rows, holder), _wakes(rows.values())


async def claim_due(
    db: Database, queue: str, limit: int, holder: Holder, overdue: float = 0.0
) -> tuple[list[ClaimedUnit], list[Wake]]:
    """Start up to `limit` units of `queue` without a broker, the ones that had started before first.

    Only those that have been due for `overdue` seconds.
    """

    async def work(tx: Transaction) -> dict[UnitId, Row]:
        params = {"queue": queue, "kinds": list(holder.kinds), "limit": limit, "overdue": overdue}
        due = [UnitId(row["task_id"], row["unit"]) for row in await tx.fetch(_SQL["due_units"], params)]
        return _by_unit(await tx.fetch(_SQL["claim"], _claim_params(due, holder))) if due else {}

    rows = await db.run(work)
    claimed = [_unit(row, holder) for row in rows.values() if row["claimed"]]
    return claimed, _wakes(rows.values())


def _claim_params(unit_ids: Iterable[UnitId], holder: Holder) -> dict[str, Any]:
    distinct = sorted(set(unit_ids))
    return {
        "tasks": [unit_id.task_id for unit_id in distinct],
        "units": [unit_id.unit for unit_id in distinct],
        "holder": holder.id,
        "worker": holder.worker,
        "kinds": list(holder.kinds),
        "sharded": list(holder.sharded),
    }


def _by_unit(rows: Iterable[Row]) -> dict[UnitId, Row]:
    return {UnitId(row["task_id"], row["unit"]): row for row in rows}


def _answers(deliveries: Sequence[Delivered], rows: dict[UnitId, Row], holder: Holder) -> list[Claim]:
    """A unit delivered twice in one batch is claimed once: its second delivery meets the lease of the first."""
    answers: list[Claim] = []
    taken: set[UnitId] = set()
    for delivered in deliveries:
        row = rows.get(delivered.unit_id)
        if row is not None and row["claimed"] and delivered.unit_id not in taken:
            taken.add(delivered.unit_id)
            answers.append(Claim(delivered.unit_id, Verdict.CLAIMED, _unit(row, holder)))
        else:
            answers.append(Claim(delivered.unit_id, _refusal(row)))
    return answers


def _refusal(row: Row | None) -> Verdict:
    if row is None:
        return Verdict.GONE
    if TaskState(row["state"]) in TERMINAL:
        return Verdict.ENDED
    if row["claimed"] or row["state"] == TaskState.PROCESSING:
        return Verdict.LEASED
    if not row["due"]:
        return Verdict.NOT_DUE
    return Verdict.PAUSED if row["paused"] else Verdict.NO_HANDLER


def unit_type(unit: int, *, sharded: bool) -> UnitType:
    """What a unit number means for a kind."""
    if unit == MERGE:
        return "MERGE"
    if unit != TASK:
        return "SHARD"
    return "PLAN" if sharded else "TASK"


def _unit(row: Row, holder: Holder) -> ClaimedUnit:
    unit_id = UnitId(row["task_id"], row["unit"])
    facts: dict[str, Any] = {name: row[name] for name in _COPIED}
    return ClaimedUnit(
        lease=Lease(unit_id, row["epoch"], holder.id),
        type=unit_type(unit_id.unit, sharded=row["kind"] in holder.sharded),
        **facts,
    )


_COPIED = (
    "kind",
    "queue",
    "namespace",
    "generation",
    "attempt",
    "payload",
    "checkpoint",
    "deadline",
    "failures",
    "crashes",
    "interruptions",
    "max_attempts",
    "max_crashes",
    "suspect",
)


def _wakes(rows: Iterable[Row]) -> list[Wake]:
    return [Wake(row["task_id"], row["sequence"]) for row in rows if row["claimed"] and row["unit"] == TASK]
