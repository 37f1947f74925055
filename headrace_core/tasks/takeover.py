"""Taking over what a dead holder left (rule 7): by observation, never by a clock of somebody else's.

Whoever watches reads all leases in rounds and keeps, by a monotonic clock, since when each renewal count has been
unchanged. An outage of Postgres or a step of a clock takes over nothing: the rounds fail, and the watch starts anew.
Only where a supervisor has reported that the holder's process ended is there nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from headrace_core.db import queries
from headrace_core.db.pool import Database
from headrace_core.tasks.model import Lease, Settlements, UnitId
from headrace_core.tasks.outcome import Interrupted, interrupt
from headrace_core.tasks.settle import settle

_SQL = queries.load("headrace_core.tasks", "sql/renew.sql")

DIED = Interrupted("its consumer died")
SILENT = Interrupted("the lease ran out: its consumer died or lost Postgres")


@dataclass(frozen=True, slots=True)
class Observed:
    """A lease as one round saw it."""

    lease: Lease
    queue: str
    renewal: int
    interruptions: int
    dead: bool = False
    """Its holder was seen to die."""

    @property
    def mark(self) -> tuple[UnitId, int, UUID, int]:
        """What must stay unchanged for a whole lease."""
        return (self.lease.unit_id, self.lease.epoch, self.lease.holder, self.renewal)


async def read_leases(db: Database) -> list[Observed]:
    """Every lease there is."""
    rows = await db.fetch(_SQL["read_leases"])
    return [
        Observed(
            Lease(UnitId(row["task_id"], row["unit"]), row["epoch"], row["holder"]),
            row["queue"],
            row["renewal"],
            row["interruptions"],
            row["dead"],
        )
        for row in rows
    ]


async def take_over(db: Database, lost: Sequence[Observed], *, sharded: Sequence[str] = ()) -> Settlements:
    """Put units back whose leases were seen unchanged for a whole lease, or whose holders were seen to die.

    An interruption each, due at once; and each is suspected of having taken its process down.

    A holder that renewed in the meantime keeps its unit: the answer is not applied.
    """
    settlements = [interrupt(item.lease, item.interruptions, DIED if item.dead else SILENT) for item in lost]
    return await settle(db, settlements, sharded=sharded, renewals={item.lease.unit_id: item.renewal for item in lost})
