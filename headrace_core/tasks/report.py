"""Progress and output of running units: many in one transaction, each fenced, sequences in commit order (rule 13)."""

from __future__ import annotations

from collections.abc import Sequence

from headrace_core.db import queries
from headrace_core.db.pool import Database, Transaction
from headrace_core.tasks.model import Report, Wake
from headrace_core.tasks.renew import lease_columns
from headrace_core.tasks.settle import lock_tasks

_SQL = queries.load("headrace_core.tasks", "sql/report.sql")


async def report(db: Database, reports: Sequence[Report], *, sharded: Sequence[str] = ()) -> list[Wake]:
    """Write `reports` in their order; those of a lost lease are left out. Whom to wake.

    Raises:
        DatabaseUnavailable: the outcome is unknown; writing them again may repeat output, so do not.
    """
    params = lease_columns([item.lease for item in reports]) | {
        "types": [item.type for item in reports],
        "fractions": [float(item.fraction) for item in reports],
        "texts": [item.text for item in reports],
        "offsets": [item.byte_offset for item in reports],
        "sharded": list(sharded),
    }

    async def work(tx: Transaction) -> list[Wake]:
        await lock_tasks(tx, [item.lease.unit_id.task_id for item in reports])
        return [Wake(row["task_id"], row["sequence"]) for row in await tx.fetch(_SQL["report"], params)]

    return await db.run(work)
