"""With many tasks waiting, what is read is what is taken. The proof at full size is tests/scenarios/long_queue.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from headrace_core.db import queries
from headrace_core.db.pool import Database
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.publication import take_unpublished
from headrace_core.tasks.queues import declare
from headrace_core.tasks.submit import submit
from producer import queue_loads
from producer.queue_loads import QueueLoads
from tests.factories import a_holder, a_task, claimed
from tests.fixtures.waiting import eventually

WAITING = 20_000
FILL = """
with filled as (
    insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, fingerprint, sequence,
        due_at, max_attempts, max_crashes)
    select gen_random_uuid(), -1, 'default', 'plain', 'default', 2, '{}', '', 1, now() - n * interval '1 ms', 3, 3
    from generate_series(1, %(number)s) as n
    returning 1
)
select count(*) from filled
"""


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """With a long queue in a table that nobody has analysed yet: a new system under its first load."""
    database = Database(database_url, statement_timeout=3.0)
    await database.open()
    await declare(database, [QueueSettings(name="default"), QueueSettings(name="tiny", max_backlog=5)])
    await database.fetch(FILL, {"number": WAITING})
    yield database
    await database.close()


async def test_the_sweep_is_quick_before_the_table_has_statistics(db: Database) -> None:
    """It would be a join of every waiting unit with every one taken: 8 s here, a minute with 100,000."""
    assert len(await take_unpublished(db, 1000, 2.0)) == 1000
    assert len(await take_unpublished(db, 1000, 2.0)) == 1000


async def test_claiming_from_postgres_sorts_nothing(db: Database) -> None:
    await db.run(lambda tx: tx.execute("analyze headrace_core.units"))
    due_units = queries.load("headrace_core.tasks", "sql/claim.sql")["due_units"]
    params = {"queue": "default", "kinds": ["plain"], "limit": 64, "overdue": 0.0}
    plan = "\n".join(row["QUERY PLAN"] for row in await db.fetch("explain " + due_units, params))
    assert "units_pending" in plan, plan
    assert "Sort" not in plan, plan


async def test_a_queue_that_cannot_be_full_is_not_counted_again(db: Database) -> None:
    loads = QueueLoads(db)
    await loads.refresh()
    assert loads._loads["default"].waiting == WAITING
    await submit(db, [a_task(queue=queue) for queue in ("default", "tiny", "tiny")])
    await loads.refresh()
    assert loads._loads["default"].waiting == WAITING
    assert loads._loads["tiny"].waiting == 2


async def test_a_queue_that_has_room_is_counted_again_after_a_while(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_loads, "LONGEST_UNCOUNTED_SECONDS", 1.5)
    loads = QueueLoads(db)
    await loads.refresh()
    await submit(db, [a_task()])

    async def counted_again() -> bool:
        await loads.refresh()
        return loads._loads["default"].waiting == WAITING + 1

    assert not await counted_again()
    await eventually(counted_again)


async def test_a_limit_that_is_lowered_makes_its_queue_counted_again(db: Database) -> None:
    loads = QueueLoads(db)
    await loads.refresh()
    answers = await submit(db, [a_task() for _ in range(3)])
    await claimed(db, a_holder(), answers[0].task.id)
    await declare(db, [QueueSettings(name="default", max_backlog=WAITING)])
    await loads.refresh()
    await loads.refresh()
    assert loads._loads["default"].waiting == WAITING  # counted up to the limit
    assert loads._count_at["default"] <= loads._read_at
