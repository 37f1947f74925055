"""Any interleaving keeps the promises: a property-based test of the store on a real Postgres.

Each example is a list of steps over one plain and one sharded task: claims by several holders, every settlement by
current and by stale leases, reports, cancels, takeovers. After each example the whole history is checked.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace_core.db.pool import Database
from headrace_core.errors import TaskTerminal
from headrace_core.tasks.cancel import cancel
from headrace_core.tasks.claim import claim
from headrace_core.tasks.model import (
    MERGE,
    TASK,
    TERMINAL,
    ClaimedUnit,
    Complete,
    Delivered,
    Fail,
    Plan,
    Report,
    Reschedule,
    Settlement,
    TaskState,
    UnitId,
)
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from headrace_core.tasks.states import may_become
from headrace_core.tasks.takeover import read_leases, take_over
from tests.factories import PLAIN_KIND, SHARDED_KIND, a_holder, events_of, row_of, submitted

SHARDS = 3
HOLDERS = (a_holder(), a_holder())
ERROR = error_json("HANDLER_ERROR", "E", "x")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim"] * 6 + ["complete"] * 5 + ["retry", "fail", "report", "cancel", "takeover"]),
        st.integers(0, 1),
        st.integers(MERGE, SHARDS - 1),
    ),
    max_size=40,
)


@dataclass
class World:
    """The tasks of one example, and every lease ever taken on them."""

    db: Database
    tasks: list[UUID]
    leases: list[ClaimedUnit] = field(default_factory=list)
    results: Counter[UUID] = field(default_factory=Counter)

    async def step(self, action: str, which: int, unit: int) -> None:
        task = self.tasks[which]
        match action:
            case "claim":
                answers, _ = await claim(self.db, [Delivered(UnitId(task, unit), 1)], HOLDERS[unit % 2])
                self.leases += [answer.unit for answer in answers if answer.unit is not None]
            case "cancel":
                if unit == MERGE:  # rarely: most examples should get further
                    await self.cancel(task)
            case "takeover":
                await take_over(self.db, await read_leases(self.db))
            case _ if self.leases:
                await self.write(action, self.leases[unit % len(self.leases)])

    async def cancel(self, task: UUID) -> None:
        try:
            await cancel(self.db, task)
        except TaskTerminal:
            assert (await row_of(self.db, task))["state"] in ("COMPLETED", "FAILED")

    async def write(self, action: str, unit: ClaimedUnit) -> None:
        if action == "report":
            await report(self.db, [Report(unit.lease, "progress", 0.5, "half"), Report(unit.lease, "output", text="x")])
            return
        row = await row_of(self.db, unit.lease.unit_id.task_id, unit.lease.unit_id.unit)
        current = (row["state"], row["epoch"], row["holder"]) == ("PROCESSING", unit.lease.epoch, unit.lease.holder)
        wanted = settlement(action, unit)
        outcome = await settle(self.db, [wanted])
        assert outcome.answers[0].applied == current
        if current and isinstance(wanted, Complete) and unit.type in ("TASK", "MERGE"):
            self.results[unit.lease.unit_id.task_id] += 1


def settlement(action: str, unit: ClaimedUnit) -> Settlement:
    """What `action` asks to be written; whether the lease still holds is the store's to find out."""
    if action == "retry":
        return Reschedule(unit.lease, 0, "failure", "HANDLER_ERROR", ERROR)
    if action == "fail":
        return Fail(unit.lease, "failure", "ATTEMPTS_EXHAUSTED", ERROR)
    if unit.type == "PLAN":
        return Plan(unit.lease, tuple(b'{"n": %d}' % n for n in range(SHARDS)), SHARDS)
    return Complete(unit.lease, b'{"by": %d}' % unit.lease.epoch)


async def check(world: World, task: UUID) -> None:
    row, events = await row_of(world.db, task), await events_of(world.db, task)
    assert [event["sequence"] for event in events] == list(range(1, row["sequence"] + 1)), "sequences are dense"
    states = [TaskState(e["state"]) for e in events if e["type"] == "state" and is_of_task(e)]
    assert all(may_become(*step) for step in pairwise(states)), states
    assert states[-1] == row["state"]
    terminal = [event for event in events if event["terminal"]]
    assert len(terminal) == (row["state"] in TERMINAL), "one terminal event, and it is the last"
    assert not terminal or terminal[0]["sequence"] == row["sequence"]
    assert world.results[task] == (row["state"] == "COMPLETED")
    await check_units(world.db, task, row)


async def check_units(db: Database, task: UUID, row: Any) -> None:
    units = await db.fetch("select * from headrace_core.units where task_id = %(t)s and unit <> -1", {"t": task})
    done = sum(unit["unit"] >= 0 and unit["state"] == "COMPLETED" for unit in units)
    assert row["done_shards"] == done
    merges = [unit for unit in units if unit["unit"] == MERGE]
    assert bool(merges) == (row["total_shards"] is not None and done == SHARDS)
    if row["state"] in TERMINAL:
        assert not [unit for unit in units if unit["state"] in ("PENDING", "PROCESSING")], "open units of an ended task"
    letters = await db.fetch("select 1 from headrace.dead_letters where task_id = %(t)s", {"t": task})
    assert len(letters) == (row["state"] == "FAILED")


def is_of_task(event: Any) -> bool:
    return bool(event["unit"] == TASK or event["terminal"])


async def run_example(database_url: str, steps: list[tuple[str, int, int]]) -> None:
    db = Database(database_url, max_size=2)
    await db.open()
    try:
        kinds = (PLAIN_KIND, SHARDED_KIND)
        world = World(db, [(await submitted(db, kind=kind, max_attempts=100)).id for kind in kinds])
        for step in steps:
            await world.step(*step)
        for task in world.tasks:
            await check(world, task)
    finally:
        await db.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_interleaving_keeps_the_promises(database_url: str, steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(run_example(database_url, steps))
