"""Starting units: from deliveries of the broker, or straight from Postgres. Both end in one statement."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from headrace_core.db import arrays, queries
from headrace_core.db.pool import Database, Transaction
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
    in_order,
)
from headrace_core.telemetry import metrics

_SQL = queries.load("headrace_core.tasks", "sql/claim.sql")


class _Met(NamedTuple):
    """What a unit that was asked for was found to be; the columns of the statement, in its order."""

    task_id: UUID
    unit: int
    state: str
    due: bool
    paused: bool
    known: bool
    claimed: bool
    epoch: int
    sequence: int
    waited: float
    kind: str
    queue: str
    namespace: str
    generation: int
    attempt: int
    payload: bytes
    checkpoint: bytes | None
    deadline: datetime | None
    failures: int
    crashes: int
    interruptions: int
    max_attempts: int
    max_crashes: int
    suspect: bool
    trace_context: str | None


async def claim(db: Database, deliveries: Sequence[Delivered], holder: Holder) -> tuple[list[Claim], list[Wake]]:
    """Start what the deliveries name, in one transaction; one answer each, in order.

    Never repeat it blindly: a claim whose commit was lost is found by its lease running out.

    Raises:
        DatabaseUnavailable: nothing is known to have started.
    """
    asked = _params((delivered.unit_id for delivered in deliveries), holder)
    met = {UnitId(row.task_id, row.unit): row for row in await db.fetch_as(_Met, _SQL["claim"], asked)}
    _count_waits(met.values())
    return _answers(deliveries, met, holder), _wakes(met.values())


async def claim_due(
    db: Database, queue: str, limit: int, holder: Holder, overdue: float = 0.0
) -> tuple[list[ClaimedUnit], list[Wake]]:
    """Start up to `limit` units of `queue` without a broker, the ones that had started before first.

    Only those that have been due for `overdue` seconds.
    """

    async def work(tx: Transaction) -> list[_Met]:
        params = {"queue": queue, "kinds": list(holder.kinds), "limit": limit, "overdue": overdue}
        due = [UnitId(row["task_id"], row["unit"]) for row in await tx.fetch(_SQL["due_units"], params)]
        return [_Met(**row) for row in await tx.fetch(_SQL["claim"], _params(due, holder))] if due else []

    met = await db.run(work)
    _count_waits(met)
    return [_claimed(row, holder) for row in met if row.claimed], _wakes(met)


def _count_waits(rows: Iterable[_Met]) -> None:
    waits: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.claimed:
            waits[row.queue].append(row.waited)
    for queue, seconds in waits.items():
        metrics.wait_seconds.labels(queue).observe_many(seconds)


def _params(unit_ids: Iterable[UnitId], holder: Holder) -> dict[str, Any]:
    distinct = sorted(set(unit_ids), key=in_order)
    return {
        "tasks": arrays.uuids([unit_id.task_id for unit_id in distinct]),
        "units": arrays.ints([unit_id.unit for unit_id in distinct]),
        "holder": holder.id,
        "worker": holder.worker,
        "kinds": list(holder.kinds),
        "sharded": list(holder.sharded),
        "traced": holder.traced,
    }


def _answers(deliveries: Sequence[Delivered], met: dict[UnitId, _Met], holder: Holder) -> list[Claim]:
    """A unit delivered twice in one batch is claimed once: its second delivery meets the lease of the first."""
    answers: list[Claim] = []
    taken: set[UnitId] = set()
    for delivered in deliveries:
        row = met.get(delivered.unit_id)
        if row is not None and row.claimed and delivered.unit_id not in taken:
            taken.add(delivered.unit_id)
            answers.append(Claim(delivered.unit_id, Verdict.CLAIMED, _claimed(row, holder)))
        else:
            answers.append(Claim(delivered.unit_id, _refusal(row)))
    return answers


def _refusal(row: _Met | None) -> Verdict:
    if row is None:
        return Verdict.GONE
    if TaskState(row.state) in TERMINAL:
        return Verdict.ENDED
    if row.claimed or row.state == TaskState.PROCESSING:
        return Verdict.LEASED
    if not row.due:
        return Verdict.NOT_DUE
    if row.paused:
        return Verdict.PAUSED
    return Verdict.LEASED if row.known else Verdict.NO_HANDLER  # known: somebody else took it in this very moment


def unit_type(unit: int, *, sharded: bool) -> UnitType:
    """What a unit number means for a kind."""
    if unit == MERGE:
        return "MERGE"
    if unit != TASK:
        return "SHARD"
    return "PLAN" if sharded else "TASK"


def _claimed(row: _Met, holder: Holder) -> ClaimedUnit:
    unit_id = UnitId(row.task_id, row.unit)
    sharded = row.kind in holder.sharded
    facts: Sequence[Any] = row[_KIND:]  # from `kind` on the columns are those of a claimed unit
    return ClaimedUnit(Lease(unit_id, row.epoch, holder.id), unit_type(row.unit, sharded=sharded), *facts)


_KIND = _Met._fields.index("kind")
assert _Met._fields[_KIND:] == ClaimedUnit._fields[2:]


def _wakes(rows: Iterable[_Met]) -> list[Wake]:
    return [Wake(row.task_id, row.sequence) for row in rows if row.claimed and row.unit == TASK]
