"""Retention: what has ended goes when its time is over, all of it, in small steps; FAILED stays, and nobody waits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from headrace.v1 import task_pb2
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable, TaskNotFound
from headrace_core.tasks.cancel import cancel, expire
from headrace_core.tasks.dead_letters import Chosen, discard, redrive
from headrace_core.tasks.model import Complete, Fail, Reschedule
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.reading import get_full_task
from headrace_core.tasks.retention import Removed, TablesLocked, remove_events, remove_letters, remove_tasks
from headrace_core.tasks.settle import settle
from headrace_core.tasks.submit import submit
from headrace_core.telemetry import metrics
from producer.retention import Retention
from tests.factories import a_holder, a_task, claimed, events_of, planned, row_of, submitted
from tests.fixtures.waiting import eventually
from tests.integration.status_rig import new_id, rig, run_task
from tests.producer_harness import running_producer

HOLDER = a_holder()
MONTH = timedelta(days=30)
WEEK = timedelta(days=7)
ERROR = error_json("NON_RETRYABLE", "E", "x")
TABLES = ("units", "events", "attempts", "dead_letters")


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def aged(db: Database, days: float, *tasks: UUID) -> None:
    """As if these tasks, or all, had ended so long ago."""
    await db.execute(
        "update headrace_core.units set ended_at = ended_at - %(days)s * interval '1 day'"
        " where ended_at is not null and (%(all)s or task_id = any(%(tasks)s::uuid[]))",
        {"days": days, "all": not tasks, "tasks": list(tasks)},
    )


async def left(db: Database, task_id: UUID) -> dict[str, int]:
    """How many rows each table has of a task."""
    found = {}
    for table in TABLES:
        rows = await db.fetch(
            f"select count(*) as n from headrace_core.{table} where task_id = %(task)s", {"task": task_id}
        )
        found[table] = rows[0]["n"]
    return found


async def completed(db: Database, count: int = 1, **fields: Any) -> list[UUID]:
    """Tasks that have completed."""
    tasks = [await submitted(db, id=new_id(), **fields) for _ in range(count)]
    for task in tasks:
        await run_task(db, HOLDER, task.id, outputs=0)
    return [task.id for task in tasks]


async def failed(db: Database) -> UUID:
    """A task that has failed for good."""
    task = await submitted(db)
    lease = (await claimed(db, HOLDER, task.id)).lease
    await settle(db, [Fail(lease, "failure", "NON_RETRYABLE", ERROR)])
    return task.id


async def remaining(db: Database, tasks: Sequence[UUID]) -> list[UUID]:
    rows = await db.fetch(
        "select task_id from headrace_core.units where unit = -1 and task_id = any(%(tasks)s) order by task_id",
        {"tasks": list(tasks)},
    )
    return [row["task_id"] for row in rows]


async def test_every_end_but_failed_goes_with_all_rows_and_what_is_younger_or_open_stays(db: Database) -> None:
    (done,) = await completed(db)
    cancelled, expired, waiting, running = [await submitted(db) for _ in range(4)]
    await cancel(db, cancelled.id)
    await db.execute(
        "update headrace_core.units set deadline = now() - interval '1 hour' where task_id = %(task)s",
        {"task": expired.id},
    )
    await expire(db)
    lost = await failed(db)
    await aged(db, 31)
    (young,) = await completed(db)
    await aged(db, 29, young)
    await claimed(db, HOLDER, running.id)

    removed = await remove_tasks(db, MONTH)
    assert (removed.tasks, removed.events, removed.more) == (3, 7, False)

    for task_id in (done, cancelled.id, expired.id):
        assert await left(db, task_id) == dict.fromkeys(TABLES, 0)
    assert await left(db, lost) == {"units": 1, "events": 3, "attempts": 1, "dead_letters": 1}
    for task_id in (young, waiting.id, running.id):
        assert (await left(db, task_id))["units"] == 1
    assert await remove_tasks(db, MONTH) == Removed()


async def test_a_sharded_task_that_was_redriven_goes_with_shards_merge_attempts_and_closed_letters(
    db: Database,
) -> None:
    task = await planned(db, HOLDER, shards=3)
    lease = (await claimed(db, HOLDER, task.id, 0)).lease
    await settle(db, [Fail(lease, "failure", "NON_RETRYABLE", ERROR)], sharded=HOLDER.sharded)
    await redrive(db, [Chosen(f"{task.id}-1", task.id, 1)])
    for shard in range(3):
        await settle(db, [Complete((await claimed(db, HOLDER, task.id, shard)).lease, b"1")])
    await settle(db, [Complete((await claimed(db, HOLDER, task.id, -2)).lease, b"1")])
    before = await left(db, task.id)
    assert (before["units"], before["dead_letters"]) == (5, 1)
    assert min(before.values()) > 0
    await aged(db, 31)

    assert (await remove_tasks(db, MONTH)).tasks == 1

    assert await left(db, task.id) == dict.fromkeys(TABLES, 0)


async def test_a_discarded_task_is_kept_from_its_discard_on(db: Database) -> None:
    task_id = await failed(db)
    await aged(db, 100)
    await discard(db, [Chosen(f"{task_id}-1", task_id, 1)])
    assert await remove_tasks(db, MONTH) == Removed()
    await aged(db, 31)
    assert (await remove_tasks(db, MONTH)).tasks == 1
    assert await left(db, task_id) == dict.fromkeys(TABLES, 0)


async def test_a_key_answers_as_long_as_its_task_is_kept_and_is_free_afterwards(db: Database) -> None:
    (task_id,) = await completed(db, idempotency_key="k")
    await aged(db, 29)
    await remove_tasks(db, MONTH)
    (again,) = await submit(db, [a_task(id=new_id(), idempotency_key="k")])
    assert (again.task.id, again.created) == (task_id, False)
    await aged(db, 2)
    await remove_tasks(db, MONTH)
    (anew,) = await submit(db, [a_task(id=new_id(), idempotency_key="k")])
    assert anew.created
    assert anew.task.id != task_id


async def test_a_submit_of_the_same_key_waits_for_the_removal_and_is_then_a_new_task(
    db: Database, database_url: str
) -> None:
    (task_id,) = await completed(db, idempotency_key="k")
    async with await psycopg.AsyncConnection.connect(database_url) as removing:
        await removing.execute("delete from headrace_core.units where task_id = %s", (task_id,))
        submitting = asyncio.create_task(submit(db, [a_task(id=new_id(), idempotency_key="k")]))
        await eventually(lambda: _waits_for_a_lock(db))
        await removing.commit()
        (answer,) = await submitting
    assert answer.created
    assert answer.task.id != task_id


async def _waits_for_a_lock(db: Database) -> bool:
    rows = await db.fetch(
        "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    return bool(rows)


async def test_a_task_with_a_long_history_goes_in_several_steps_and_is_there_until_the_last(db: Database) -> None:
    task = await submitted(db, id=new_id())
    await run_task(db, HOLDER, task.id, outputs=20)
    await aged(db, 31)
    steps = []
    while (removed := await remove_tasks(db, MONTH, rows=10)).more:
        steps.append((removed.tasks, removed.events))
        await row_of(db, task.id)
    assert (steps, removed.tasks, removed.events) == ([(0, 10), (0, 10)], 1, 3)
    assert await left(db, task.id) == dict.fromkeys(TABLES, 0)


async def test_a_task_with_many_attempts_goes_in_several_steps(db: Database) -> None:
    task = await submitted(db)
    for _ in range(4):
        lease = (await claimed(db, HOLDER, task.id)).lease
        await settle(db, [Reschedule(lease, 0.0, "interruption", "DRAINED", ERROR)])
    await cancel(db, task.id)
    await aged(db, 31)
    await db.execute("delete from headrace_core.events")
    assert (await remove_tasks(db, MONTH, rows=3)).more
    assert await left(db, task.id) == {"units": 1, "events": 0, "attempts": 1, "dead_letters": 0}
    assert (await remove_tasks(db, MONTH, rows=3)).tasks == 1


async def test_a_step_is_bounded_in_tasks_and_in_units(db: Database) -> None:
    tasks = [await planned(db, HOLDER, shards=4) for _ in range(4)]
    for task in tasks:
        await cancel(db, task.id)
        await aged(db, 31, task.id)
    steps = []
    while (removed := await remove_tasks(db, MONTH, limit=3, rows=14)).more:
        steps.append(removed.tasks)
    assert (steps, removed.tasks) == ([2], 2)  # 6 units each: two tasks fit into 14


async def test_replicas_at_once_remove_each_task_once(db: Database) -> None:
    await completed(db, 60)
    await aged(db, 31)

    async def replica() -> int:
        count, after = 0, None
        while (removed := await remove_tasks(db, MONTH, limit=7, after=after)).more:
            count, after = count + removed.tasks, removed.ended_at
        return count + removed.tasks

    counts = await asyncio.gather(*(replica() for _ in range(4)))
    counts.append(await replica())  # what was skipped because another held it that did not get to it
    assert sum(counts) == 60
    assert (await db.fetch("select count(*) as n from headrace_core.units"))[0]["n"] == 0


async def test_a_task_that_somebody_holds_is_left_for_later_without_waiting(db: Database, database_url: str) -> None:
    held, free = await completed(db, 2)
    await aged(db, 31)
    async with await psycopg.AsyncConnection.connect(database_url) as holding:
        await holding.execute("select 1 from headrace_core.units where task_id = %s for update", (held,))
        assert (await remove_tasks(db, MONTH)).tasks == 1
    assert await remaining(db, [held, free]) == [held]
    assert (await remove_tasks(db, MONTH)).tasks == 1


async def test_a_locked_table_is_given_way_to(db: Database, database_url: str) -> None:
    (task_id,) = await completed(db)
    await aged(db, 31)
    async with await psycopg.AsyncConnection.connect(database_url) as migrating:
        await migrating.execute("lock table headrace_core.events in access exclusive mode")
        with pytest.raises(TablesLocked):
            await remove_tasks(db, MONTH)
    assert (await left(db, task_id))["units"] == 1


async def test_events_go_before_their_tasks_and_watches_say_so(database_url: str) -> None:
    async with rig(database_url) as status:
        old, young = await completed(status.db, 2)
        await aged(status.db, 8, old)
        assert (await remove_events(status.db, WEEK)).events == 3
        assert await remove_events(status.db, WEEK) == Removed()

        assert (await get_full_task(status.db, old)).result == b'{"ok": true}'
        events = await status.open(old, after=1).rest()
        assert [event.WhichOneof("event") for event in events] == ["gap", "snapshot"]
        assert events[1].snapshot.state == task_pb2.TASK_STATE_COMPLETED
        assert await status.open(old, after=3).rest() == []
        assert len(await status.open(young, after=0).rest()) == 3

        await aged(status.db, 31)
        await remove_tasks(status.db, MONTH)
        with pytest.raises(TaskNotFound):
            await status.open(old, after=1).rest()


async def test_events_of_failed_tasks_stay(db: Database) -> None:
    task_id = await failed(db)
    await aged(db, 8)
    assert await remove_events(db, WEEK) == Removed()
    assert len(await events_of(db, task_id)) == 3


async def test_events_go_in_steps_that_forget_no_task(db: Database) -> None:
    tasks = await completed(db, 7)
    for age, task_id in enumerate(tasks[:4]):
        await aged(db, 8 + age, task_id)
    same = "update headrace_core.units set ended_at = now() - interval '8 days' where task_id = any(%(tasks)s)"
    await db.execute(same, {"tasks": tasks[4:]})
    # In a step of two tasks the three that ended at one moment stay together; their events are too many for one step.
    while (await remove_events(db, WEEK, limit=2, rows=4)).more:
        continue
    assert [await events_of(db, task_id) for task_id in tasks] == [[]] * 7


async def test_one_replica_at_a_time_removes_events(db: Database, database_url: str) -> None:
    await completed(db)
    await aged(db, 8)
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("select 1 from headrace_core.retention for update")
        assert await remove_events(db, WEEK) == Removed()
    assert (await remove_events(db, WEEK)).tasks == 1


async def test_closed_letters_without_a_task_go_and_open_ones_stay(db: Database) -> None:
    await db.execute(
        "insert into headrace_core.dead_letters (id, queue, reason, created_at, resolved_at, resolution)"
        " select id, 'default', 'UNPARSEABLE_MESSAGE', now() - interval '99 days',"
        " now() - closed * interval '1 day',"
        " case when closed is null then '' else 'DISCARDED' end"
        " from (values ('old', 31), ('young', 29), ('open', null)) as d (id, closed)"
    )
    assert await remove_letters(db, MONTH) == 1
    rows = await db.fetch("select id from headrace_core.dead_letters order by id")
    assert [row["id"] for row in rows] == ["open", "young"]


async def test_a_step_reads_what_it_removes_however_much_is_kept_or_failed(database_url: str) -> None:
    # Statistics are kept by connection until they are flushed: what is measured takes the same one.
    db = Database(database_url, max_size=1)
    await db.open()
    try:
        await _measure_a_step(db)
    finally:
        await db.close()


async def _measure_a_step(db: Database) -> None:
    await db.execute(
        "insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, due_at,"
        " ended_at, state, max_attempts, max_crashes)"
        " select gen_random_uuid(), -1, 'default', 'plain', 'default', 2, '{}', now(),"
        " now() - (case when n <= 10000 then 90 when n <= 30000 then 1 else 31 end) * interval '1 day',"
        " case when n <= 10000 then 'FAILED' else 'COMPLETED' end, 3, 3 from generate_series(1, 30100) n"
    )
    await db.execute("analyze headrace_core.units")
    read_before = await _rows_read(db)
    assert (await remove_tasks(db, MONTH, limit=50)).tasks == 50
    assert (await remove_events(db, MONTH, limit=50)).tasks == 50
    assert await _rows_read(db) - read_before < 500


async def _rows_read(db: Database) -> int:
    await db.fetch("select pg_stat_force_next_flush()")
    (row,) = await db.fetch(
        "select seq_tup_read + coalesce(idx_tup_fetch, 0) as n from pg_stat_user_tables where relname = 'units'"
    )
    return int(row["n"])


async def test_a_producer_removes_what_is_due_and_says_how_much(database_url: str, db: Database) -> None:
    old = await completed(db, 3)
    await aged(db, 31)
    (recent,) = await completed(db)
    await aged(db, 8, recent)
    before = _counted("tasks"), _counted("events")
    async with running_producer(database_url):
        await eventually(lambda: _gone(db, old))
        await eventually(lambda: _without_events(db, recent))
    assert await remaining(db, [recent]) == [recent]
    assert (_counted("tasks") - before[0], _counted("events") - before[1]) == (3, 12)


async def _gone(db: Database, tasks: Sequence[UUID]) -> bool:
    return not await remaining(db, tasks)


async def _without_events(db: Database, task_id: UUID) -> bool:
    return not await events_of(db, task_id)


def _counted(what: str) -> float:
    return metrics.REGISTRY.get_sample_value("headrace_retention_removed_total", {"what": what}) or 0.0


async def test_nothing_goes_where_everything_is_kept_for_ever(db: Database) -> None:
    (task_id,) = await completed(db)
    await aged(db, 20_000)
    await Retention(db, days=0, events_days=0, share=0.2).remove_due()
    assert (await left(db, task_id))["events"] == 3


async def test_events_that_are_to_be_kept_as_long_as_the_task_go_with_it(db: Database) -> None:
    (task_id,) = await completed(db)
    await aged(db, 20)
    await Retention(db, days=30, events_days=30, share=0.2).remove_due()
    assert (await left(db, task_id))["events"] == 3
    await aged(db, 11)
    await Retention(db, days=30, events_days=30, share=0.2).remove_due()
    assert await left(db, task_id) == dict.fromkeys(TABLES, 0)


async def test_a_database_that_is_away_is_said_and_not_swallowed() -> None:
    database = Database("postgresql://postgres@127.0.0.1:1/none")
    await database.open()
    try:
        with pytest.raises(DatabaseUnavailable):
            await Retention(database, days=30, events_days=7, share=0.2).remove_due()
    finally:
        await database.close()
