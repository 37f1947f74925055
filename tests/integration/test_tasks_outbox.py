"""What the outbox offers to be published: units that are due and not marked, fairly over the subjects."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest_asyncio

from headrace_core.db.pool import Database
from headrace_core.tasks.model import Priority
from headrace_core.tasks.publication import mark_published, of_submitted, take_unpublished
from tests.factories import submitted


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def test_the_outbox_offers_a_unit_until_it_is_marked(db: Database) -> None:
    task = await submitted(db)
    assert await take_unpublished(db, 10, grace=60) == []
    assert await take_unpublished(db, 10, grace=0, full=["default.normal"]) == []
    assert await take_unpublished(db, 10, grace=0) == [of_submitted(task)]
    await mark_published(db, 1, [(of_submitted(task), 7)])
    assert await take_unpublished(db, 10, grace=0) == []


async def test_the_outbox_goes_through_the_subjects_by_turns(db: Database) -> None:
    for _ in range(20):
        await submitted(db)
    other = await submitted(db, priority=Priority.HIGH)
    taken = await take_unpublished(db, 4, grace=0)
    assert len(taken) == 4
    assert of_submitted(other) in taken


async def test_a_delayed_task_is_offered_when_due_and_not_before(db: Database) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=200)
    task = await submitted(db, run_at=soon)
    assert await take_unpublished(db, 10, grace=60) == []
    await db.fetch("select pg_sleep(0.25)")
    assert [item.unit_id.task_id for item in await take_unpublished(db, 10, grace=60)] == [task.id]
