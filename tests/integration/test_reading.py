"""Reads of tasks: the full view, pages that lose and repeat nothing, and events of many tasks in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from headrace_core.db.pool import Database
from headrace_core.errors import TaskNotFound
from headrace_core.tasks.model import Complete, Fail, Reschedule, TaskState
from headrace_core.tasks.reading import (
    NEWEST,
    TaskFilter,
    ended_matching,
    get_full_task,
    has_schema,
    list_tasks,
    matching_of,
    read_events,
    read_positions,
    read_tasks,
    recent_matching,
)
from headrace_core.tasks.settle import settle
from headrace_core.tasks.submit import submit
from tests.factories import a_holder, a_task, claimed, planned, submitted
from tests.integration.status_rig import new_id, run_task

HOLDER = a_holder()
ERROR = b'{"reason": "HANDLER_ERROR", "type": "ValueError", "message": "no"}'


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def test_the_full_view_has_every_attempt_the_payload_and_the_result(db: Database) -> None:
    task = await submitted(db, payload=b'{"n":  9007199254740993}')
    unit = await claimed(db, HOLDER, task.id)
    await settle(db, [Reschedule(unit.lease, 0.0, "failure", "HANDLER_ERROR", ERROR)])
    unit = await claimed(db, HOLDER, task.id)
    running = await get_full_task(db, task.id)
    assert [attempt.outcome for attempt in running.attempts] == ["PENDING", "PROCESSING"]
    assert running.attempts[1].ended_at is None
    await settle(db, [Complete(unit.lease, b'{"sum":  1.10}')])
    full = await get_full_task(db, task.id)
    assert full.payload == b'{"n":  9007199254740993}'
    assert full.result == b'{"sum":  1.10}'
    assert full.record.state is TaskState.COMPLETED
    assert [(a.attempt, a.epoch, a.outcome, a.unit_type) for a in full.attempts] == [
        (1, 1, "PENDING", "TASK"),
        (2, 2, "COMPLETED", "TASK"),
    ]
    assert full.attempts[0].error is not None
    assert full.attempts[1].ended_at is not None


async def test_the_full_view_of_a_sharded_task_has_its_shards(db: Database) -> None:
    task = await planned(db, HOLDER, shards=3, needed=1)
    unit = await claimed(db, HOLDER, task.id, 1)
    await settle(db, [Fail(unit.lease, "failure", "NON_RETRYABLE", ERROR)], sharded=HOLDER.sharded)
    full = await get_full_task(db, task.id)
    assert [(shard.index, shard.state) for shard in full.shards] == [(0, "PENDING"), (1, "FAILED"), (2, "PENDING")]
    assert {(attempt.unit_type, attempt.shard_index) for attempt in full.attempts} == {("PLAN", None), ("SHARD", 1)}


async def test_an_unknown_task_is_not_found(db: Database) -> None:
    unknown = new_id()
    with pytest.raises(TaskNotFound, match=str(unknown)):
        await get_full_task(db, unknown)
    assert await read_tasks(db, [unknown]) == {}
    assert await read_positions(db, [unknown]) == {}


async def test_pages_lose_and_repeat_nothing_while_tasks_arrive(db: Database) -> None:
    ids = sorted(new_id() for _ in range(25))
    await submit(db, [a_task(id=task_id) for task_id in ids])
    seen: list[UUID] = []
    before = NEWEST
    while page := await list_tasks(db, TaskFilter(), limit=4, before=before):
        seen += [task.id for task in page]
        before = page[-1].id
        await submitted(db, id=new_id())  # newer than every page to come
    assert seen == ids[::-1]


@pytest.fixture
async def one_connection(database_url: str) -> AsyncIterator[Database]:
    """Statistics are kept by connection until they are flushed: what is measured takes the same one."""
    database = Database(database_url, max_size=1)
    await database.open()
    yield database
    await database.close()


async def test_a_few_open_tasks_are_found_among_many_that_ended_without_reading_those(
    one_connection: Database,
) -> None:
    db = one_connection
    waiting, running, lost = sorted([(await submitted(db, id=new_id())).id for _ in range(3)])
    await claimed(db, HOLDER, running)
    await settle(db, [Fail((await claimed(db, HOLDER, lost)).lease, "failure", "NON_RETRYABLE", ERROR)])
    await db.execute(
        "insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, due_at, ended_at,"
        " state, max_attempts, max_crashes)"
        " select ('ffffffff' || substr(gen_random_uuid()::text, 9))::uuid, -1, 'default', 'plain', 'default', 2, '{}',"
        " now(), now(), 'COMPLETED', 3, 3 from generate_series(1, 20000)"
    )
    await db.execute("analyze headrace_core.units")
    read_before = await _blocks_read(db)
    for states, found in [
        ((TaskState.PENDING, TaskState.PROCESSING), [running, waiting]),
        ((TaskState.PROCESSING,), [running]),
        ((TaskState.FAILED, TaskState.PENDING), [lost, waiting]),
    ]:
        assert [task.id for task in await list_tasks(db, TaskFilter(states=states), limit=50)] == found
    assert await _blocks_read(db) - read_before < 100


async def _blocks_read(db: Database) -> int:
    """Blocks of the table of units that this database's backends have looked at, so far."""
    await db.fetch("select pg_stat_force_next_flush()")
    (row,) = await db.fetch(
        "select heap_blks_read + heap_blks_hit as n from pg_statio_user_tables where relname = 'units'"
    )
    return int(row["n"])


async def test_what_ended_lately_is_found_however_it_ended(db: Database) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    done, lost, waiting = [(await submitted(db, id=new_id())).id for _ in range(3)]
    await run_task(db, HOLDER, done, outputs=0)
    await settle(db, [Fail((await claimed(db, HOLDER, lost)).lease, "failure", "NON_RETRYABLE", ERROR)])
    found = await ended_matching(db, TaskFilter(), before, limit=10)
    assert list(found) == [lost, done]
    assert waiting not in found
    assert list(await ended_matching(db, TaskFilter(), before, limit=1)) == [lost]
    assert await ended_matching(db, TaskFilter(), before + timedelta(hours=1), limit=10) == {}


async def test_filters(db: Database) -> None:
    red = await submitted(db, id=new_id(), labels={"colour": "red", "size": "s"}, namespace="one")
    blue = await submitted(db, id=new_id(), labels={"colour": "blue"}, kind="other", queue="q2")
    plain = await submitted(db, id=new_id())
    await run_task(db, HOLDER, red.id, outputs=0)
    now = datetime.now(UTC)

    async def listed(**fields: object) -> set[UUID]:
        found = await list_tasks(db, TaskFilter(**fields), limit=10)  # type: ignore[arg-type]
        return {task.id for task in found}

    everything = {red.id, blue.id, plain.id}
    assert await listed() == everything
    assert await listed(namespace="one") == {red.id}
    assert await listed(kind="other") == {blue.id}
    assert await listed(queue="q2") == {blue.id}
    assert await listed(states=(TaskState.COMPLETED,)) == {red.id}
    assert await listed(states=(TaskState.PENDING, TaskState.COMPLETED)) == everything
    assert await listed(labels=(("colour", "red"),)) == {red.id}
    assert await listed(labels=(("colour", "red"), ("size", "m"))) == set()
    assert await listed(labels=(("size", "s"),), states=(TaskState.PENDING,)) == set()
    assert await listed(created_after=now - timedelta(hours=1), created_before=now + timedelta(hours=1)) == everything
    assert await listed(created_after=plain.created_at) == {plain.id}
    assert await listed(created_before=plain.created_at) == {red.id, blue.id}
    assert await listed(created_before=datetime.max.replace(tzinfo=UTC)) == everything
    assert await listed(created_after=datetime.min.replace(tzinfo=UTC)) == everything


async def test_matching_and_recent(db: Database) -> None:
    red = await submitted(db, id=new_id(), labels={"colour": "red"})
    blue = await submitted(db, id=new_id(), labels={"colour": "blue"})
    wanted = TaskFilter(labels=(("colour", "red"),))
    found = await matching_of(db, wanted, [red.id, blue.id, new_id()])
    assert list(found) == [red.id]
    assert found[red.id].state is TaskState.PENDING
    assert list(await recent_matching(db, wanted, 60.0, limit=10)) == [red.id]
    statement = "update headrace_core.units set created_at = now() - interval '70 s'"
    await db.run(lambda tx: tx.execute(statement))
    assert await recent_matching(db, wanted, 60.0, limit=10) == {}


async def test_events_of_many_tasks_come_task_by_task_and_bounded(db: Database) -> None:
    tasks = [await submitted(db) for _ in range(3)]
    for task in tasks:
        await run_task(db, HOLDER, task.id, outputs=3)
    cursors = [(tasks[2].id, 0), (tasks[0].id, 4), (tasks[1].id, 99), (new_id(), 0)]
    rows = await read_events(db, cursors, per_task=100, limit=100)
    assert [(row.task_id, row.sequence) for row in rows] == [
        *[(tasks[2].id, sequence) for sequence in range(1, 7)],
        (tasks[0].id, 5),
        (tasks[0].id, 6),
    ]
    short = await read_events(db, cursors, per_task=2, limit=3)
    assert [(row.task_id, row.sequence) for row in short] == [(tasks[2].id, 1), (tasks[2].id, 2), (tasks[0].id, 5)]
    assert await read_events(db, [], per_task=2, limit=3) == []


async def test_what_is_read_is_a_prefix_while_others_write(db: Database) -> None:
    """Two units of one task write at once: a reader never sees a number without those before it."""
    task = await planned(db, HOLDER, shards=6)
    units = [await claimed(db, HOLDER, task.id, shard) for shard in range(6)]
    writers = [asyncio.create_task(settle(db, [Complete(unit.lease, b"{}")])) for unit in units]
    while not all(writer.done() for writer in writers):
        rows = await read_events(db, [(task.id, 0)], per_task=100, limit=100)
        assert [row.sequence for row in rows] == list(range(1, len(rows) + 1))
    await asyncio.gather(*writers)


async def test_an_empty_database_has_no_schema(db: Database, empty_database_url: str) -> None:
    assert await has_schema(db, timeout=5.0)
    empty = Database(empty_database_url)
    await empty.open()
    assert not await has_schema(empty, timeout=5.0)
    await empty.close()
