"""Hot statements go by primary key, also where the statistics are those of another table (decision 11).

The tables are filled after the connections have made and kept their plans, and nobody analyses them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from headrace_core.db import arrays, queries
from headrace_core.db.pool import Database
from headrace_core.tasks import queues
from headrace_core.tasks.claim import claim
from headrace_core.tasks.model import TASK, Delivered, Fail, Report, Reschedule, UnitId
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.publication import mark_published, of_submitted
from headrace_core.tasks.renew import renew
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from headrace_core.tasks.submit import submit
from tests.factories import a_holder, a_task

MANY, BATCH = 20_000, 500
QUICK_SECONDS = 1.0
"""Of a statement for a batch: it takes some 10 ms, and reading the table for each of its rows several seconds."""
ERROR = error_json("HANDLER_ERROR", "E", "x")
HOLDER = a_holder()
SCAN = re.compile(r"Seq Scan on units|Index (?:Only )?Scan (?:using|on) (?P<index>units_\w+)")


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("alter table headrace_core.units set (autovacuum_enabled = off)")
    database = Database(database_url, max_size=1, statement_timeout=QUICK_SECONDS)
    await database.open()
    yield database
    await database.close()


async def filled(db: Database) -> list[UUID]:
    """Ids of some of many waiting tasks."""
    found: list[UUID] = []
    for _ in range(0, MANY, BATCH):
        found = [answer.task.id for answer in await submit(db, [a_task() for _ in range(BATCH)])]
    return found


async def run_through(db: Database, number: int) -> None:
    """A batch through every statement of the path, so that its plans are made."""
    tasks = [answer.task for answer in await submit(db, [a_task() for _ in range(number)])]
    await mark_published(db, 1, [(of_submitted(task), place) for place, task in enumerate(tasks)])
    claims, _ = await claim(db, [Delivered(UnitId(task.id, TASK), 1) for task in tasks], HOLDER)
    leases = [answer.unit.lease for answer in claims if answer.unit is not None]
    assert len(leases) == number
    assert len(await renew(db, leases)) == number
    await report(db, [Report(lease, "progress", 0.5, "half") for lease in leases])
    third = number // 3
    await settle(
        db, [Reschedule(lease, 60.0, "failure", "HANDLER_ERROR", ERROR) for lease in leases[third : 2 * third]]
    )
    await settle(db, [Fail(lease, "failure", "ATTEMPTS_EXHAUSTED", ERROR) for lease in leases[2 * third :]])


async def test_the_path_of_a_task_is_quick_in_a_table_that_has_grown_since_its_plans(db: Database) -> None:
    for _ in range(8):  # more than the five tries after which a plan is kept
        await run_through(db, 3)
    await filled(db)
    await run_through(db, BATCH)


async def test_ending_many_waiting_tasks_is_quick_before_the_table_has_statistics(db: Database) -> None:
    await filled(db)
    ended = await queues.purge(db, "default", datetime.now(UTC) + timedelta(seconds=1))
    assert len(ended) == queues.PURGE_BATCH


LEASES = {"units": arrays.ints([TASK] * 3), "epochs": arrays.ints([1] * 3), "holders": arrays.uuids([HOLDER.id] * 3)}
FOR_END = {"reasons": ["x"] * 3, "errors": [None] * 3, "units": [-1] * 3, "attempts": [0] * 3, "state": "CANCELLED"}
STATEMENTS: list[tuple[str, str, Mapping[str, Any]]] = [
    ("settle", "complete_tasks", LEASES | {"results": arrays.texts([b"1"] * 3)}),
    ("settle", "end_tasks", FOR_END | {"sharded": []}),
    ("renew", "renew", LEASES),
    ("publication", "mark_published", {**LEASES, "dispatches": [1] * 3, "sequences": [1] * 3, "incarnation": 1}),
    ("reconciliation", "publish_again", LEASES | {"dispatches": [1] * 3}),
    (
        "claim",
        "claim",
        {
            "units": LEASES["units"],
            "holder": HOLDER.id,
            "worker": "w",
            "kinds": ["plain"],
            "sharded": [],
            "traced": True,
        },
    ),
]


@pytest.mark.parametrize(("file", "name", "params"), STATEMENTS, ids=[name for _, name, _ in STATEMENTS])
async def test_units_are_looked_up_by_primary_key_alone(
    db: Database, file: str, name: str, params: Mapping[str, Any]
) -> None:
    tasks = arrays.uuids((await filled(db))[:3])
    statement = queries.load("headrace_core.tasks", f"sql/{file}.sql")[name]
    rows = await db.fetch("explain " + statement, {**params, "tasks": tasks})
    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    scans = [match["index"] for match in SCAN.finditer(plan)]
    assert scans, plan
    assert set(scans) == {"units_pkey"}, plan
