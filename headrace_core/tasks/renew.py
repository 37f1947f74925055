"""Keeping a lease: renewals in one batch, and the checkpoint that the next attempt starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace_core.db import arrays, queries
from headrace_core.db.pool import Database
from headrace_core.tasks.model import Lease, UnitId

_SQL = queries.load("headrace_core.tasks", "sql/renew.sql")


async def renew(db: Database, leases: Sequence[Lease], *, timeout: float = 2.0) -> set[UnitId]:
    """Renew `leases` in one statement; the units that are still held. The rest has been lost: end their handlers."""
    rows = await db.fetch(_SQL["renew"], lease_columns(leases), timeout=timeout)
    return {UnitId(row["task_id"], row["unit"]) for row in rows}


async def clear_suspicion(db: Database, leases: Sequence[Lease], *, timeout: float = 2.0) -> int:
    """Take back what the takeover of `leases` suspects: their holder lives. Those that wait still; how many."""
    return await db.execute(_SQL["clear_suspicion"], lease_columns(leases), timeout=timeout)


async def save_checkpoint(db: Database, lease: Lease, data: bytes) -> bool:
    """Store `data` (JSON text) for the unit's next attempt; False if the lease was lost."""
    params = {"data": data.decode(), "task": lease.unit_id.task_id, "unit": lease.unit_id.unit}
    params |= {"epoch": lease.epoch, "holder": lease.holder}
    return await db.execute(_SQL["save_checkpoint"], params) == 1


def lease_columns(leases: Sequence[Lease]) -> dict[str, Any]:
    """Leases as the four arrays that the statements unnest."""
    return {
        "tasks": arrays.uuids([lease.unit_id.task_id for lease in leases]),
        "units": arrays.ints([lease.unit_id.unit for lease in leases]),
        "epochs": arrays.ints([lease.epoch for lease in leases]),
        "holders": arrays.uuids([lease.holder for lease in leases]),
    }
