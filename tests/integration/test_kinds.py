"""What consumers note about themselves in Postgres."""

import json
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from headrace_core.db.pool import Database
from headrace_core.tasks.kinds import (
    ConsumerRow,
    KindRow,
    live_consumers,
    read_inference,
    read_kinds,
    register_kinds,
    remove_consumer,
    undeclared_queues,
    upsert_consumer,
    write_inference,
)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database(database_url, max_size=2)
    await db.open()
    yield db
    await db.close()


async def test_several_schemas_of_a_kind_live_side_by_side_and_the_last_seen_comes_last(db: Database) -> None:
    old, new = KindRow("k", "b", b'{"type":"object"}', "default", False), KindRow("k", "a", None, "other", True)
    await register_kinds(db, [old])
    await register_kinds(db, [new])
    assert await read_kinds(db) == [old, new]
    await register_kinds(db, [old])
    assert await read_kinds(db) == [new, old]


async def test_a_registration_ends_seven_days_after_its_last_consumer(db: Database) -> None:
    await register_kinds(db, [KindRow("k", "a", None, "default", False), KindRow("l", "a", None, "default", False)])
    await db.fetch("update headrace_core.kinds set seen_at = now() - interval '8 days' where kind = 'k' returning 1")
    assert [row.kind for row in await read_kinds(db)] == ["l"]


async def test_registering_nothing_is_fine(db: Database) -> None:
    await register_kinds(db, [])
    assert await read_kinds(db) == []


async def test_a_consumer_lives_while_it_gives_signs_of_life(db: Database) -> None:
    row = ConsumerRow(uuid4(), "host/1", ["a", "b"], ["default"], running=3, mode="broker")
    await upsert_consumer(db, row)
    (seen,) = await live_consumers(db)
    assert (seen.worker, seen.kinds, seen.running, seen.draining) == ("host/1", ["a", "b"], 3, False)
    await upsert_consumer(db, ConsumerRow(row.holder, "host/1", ["a"], ["default"], draining=True))
    (again,) = await live_consumers(db)
    assert (again.draining, again.started_at) == (True, seen.started_at)
    await db.fetch("update headrace_core.consumers set seen_at = now() - interval '16 s' returning 1")
    assert await live_consumers(db) == []


async def test_who_leaves_takes_the_long_silent_ones_along(db: Database) -> None:
    silent, leaving = uuid4(), uuid4()
    await upsert_consumer(db, ConsumerRow(silent, "s", [], []))
    await db.fetch("update headrace_core.consumers set seen_at = now() - interval '2 days' returning 1")
    await upsert_consumer(db, ConsumerRow(leaving, "l", [], []))
    await remove_consumer(db, leaving)
    await remove_consumer(db, leaving)
    assert await db.fetch("select 1 from headrace_core.consumers") == []


async def test_inference_is_one_row(db: Database) -> None:
    assert await read_inference(db) is None
    await write_inference(db, {"backend": "embedded", "lastError": "first"})
    await write_inference(db, {"backend": "embedded", "lastError": None})
    seen = await read_inference(db)
    assert seen is not None
    assert json.loads(seen.health) == {"backend": "embedded", "lastError": None}
    assert seen.checked_at.tzinfo is not None


async def test_undeclared_queues(db: Database) -> None:
    await db.fetch("insert into headrace_core.queues (name) values ('known') returning 1")
    assert await undeclared_queues(db, ["known", "b", "a"]) == ["a", "b"]
