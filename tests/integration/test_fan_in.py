"""Where the shards of a task meet: whatever happens at once, there is one merge or none, as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from headrace_core.db.pool import Database, Transaction
from headrace_core.errors import TaskTerminal
from headrace_core.tasks.cancel import Cancelled, cancel
from headrace_core.tasks.claim import claim
from headrace_core.tasks.model import (
    MERGE,
    ClaimedUnit,
    Complete,
    Delivered,
    Fail,
    Holder,
    Plan,
    Reschedule,
    Settlements,
    TaskRecord,
    UnitId,
    Verdict,
)
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.parts import merge_input
from headrace_core.tasks.settle import lock_tasks, settle
from headrace_core.tasks.takeover import read_leases, take_over
from tests.factories import SHARDED_KIND, a_holder, claimed, events_of, planned, row_of, submitted
from tests.fixtures.waiting import eventually

ERROR = error_json("ATTEMPTS_EXHAUSTED", "ValueError", "a bad shard")


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def at_a_barrier(db: Database, task_id: UUID, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Let the calls meet at the task's row: each waits for its lock, in this order, before any gets it."""
    locked, release = asyncio.Event(), asyncio.Event()

    async def hold(tx: Transaction) -> None:
        await lock_tasks(tx, [task_id])
        locked.set()
        await release.wait()

    holding = asyncio.create_task(db.run(hold, timeout=30))
    await locked.wait()
    running: list[asyncio.Future[Any]] = []
    for call in calls:
        running.append(asyncio.ensure_future(call()))
        await eventually(lambda: waiting_for_locks(db, len(running)), what="the calls at the barrier")
    release.set()
    await holding
    return await asyncio.gather(*running, return_exceptions=True)


async def waiting_for_locks(db: Database, number: int) -> bool:
    (row,) = await db.fetch(
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    return bool(row["n"] == number)


async def shards_of(db: Database, holder: Holder, task: TaskRecord, number: int) -> list[ClaimedUnit]:
    return [await claimed(db, holder, task.id, index) for index in range(number)]


async def merges_of(db: Database, task: TaskRecord) -> int:
    (row,) = await db.fetch(
        "select count(*) as n from headrace_core.units where task_id = %(task)s and unit = -2", {"task": task.id}
    )
    return int(row["n"])


def merges_published(*answers: Settlements) -> int:
    return sum(item.unit_id.unit == MERGE for answer in answers for item in answer.publications)


async def verdict_of(db: Database, task: TaskRecord, unit: int) -> Verdict:
    """What a delivery of the unit meets now."""
    (answer,), _ = await claim(db, [Delivered(UnitId(task.id, unit), 1)], a_holder())
    return answer.verdict


async def sequences_are_dense(db: Database, task: TaskRecord) -> bool:
    found = [event["sequence"] for event in await events_of(db, task.id)]
    return found == list(range(1, len(found) + 1))


async def test_two_last_shards_at_a_barrier_make_one_merge(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 2)
    first, second = await shards_of(db, holder, task, 2)
    answers = await at_a_barrier(
        db,
        task.id,
        lambda: settle(db, [Complete(first.lease, b"1")]),
        lambda: settle(db, [Complete(second.lease, b"2")]),
    )
    assert [answer.answers[0].applied for answer in answers] == [True, True]
    assert merges_published(*answers) == await merges_of(db, task) == 1
    assert (await row_of(db, task.id))["done_shards"] == 2
    assert await sequences_are_dense(db, task)
    merge = await claimed(db, holder, task.id, MERGE)
    assert (await merge_input(db, task.id))[1] == [b"1", b"2"]
    assert (await settle(db, [Complete(merge.lease, b"3")])).answers[0].applied


async def test_one_shard_settled_twice_at_a_barrier_counts_once(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 2)
    first, _ = await shards_of(db, holder, task, 2)
    answers = await at_a_barrier(db, task.id, *[lambda: settle(db, [Complete(first.lease, b"1")])] * 2)
    assert [answer.answers[0].applied for answer in answers] == [True, False]
    assert (await row_of(db, task.id))["done_shards"] == 1
    assert await merges_of(db, task) == 0


async def test_a_plan_of_zero_shards_whose_commit_is_repeated_makes_one_merge(db: Database) -> None:
    holder = a_holder()
    task = await submitted(db, kind=SHARDED_KIND)
    unit = await claimed(db, holder, task.id)
    answers = await at_a_barrier(db, task.id, *[lambda: settle(db, [Plan(unit.lease, (), 0)])] * 2)
    assert [answer.answers[0].applied for answer in answers] == [True, False]
    assert merges_published(*answers) == await merges_of(db, task) == 1
    assert (await merge_input(db, task.id))[1] == []


async def test_shards_that_are_late_for_a_quorum_change_nothing(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 5, needed=2)
    shards = await shards_of(db, holder, task, 4)  # the fifth has not even started
    await settle(db, [Complete(shards[3].lease, b"3")])
    answers = await at_a_barrier(
        db,
        task.id,
        lambda: settle(db, [Complete(shards[1].lease, b"1")]),
        lambda: settle(db, [Complete(shards[0].lease, b"0")]),
        lambda: settle(db, [Fail(shards[2].lease, "failure", "ATTEMPTS_EXHAUSTED", ERROR)]),
    )
    assert [answer.answers[0].applied for answer in answers] == [True, False, False]
    assert merges_published(*answers) == 1
    assert await verdict_of(db, task, 4) is Verdict.ENDED
    assert (await merge_input(db, task.id))[1] == [b"1", b"3"]
    row = await row_of(db, task.id)
    assert (row["state"], row["done_shards"], row["failed_shards"]) == ("PROCESSING", 2, 0)


async def test_shards_that_overshoot_a_quorum_in_one_batch_are_all_parts(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 3, needed=2)
    shards = await shards_of(db, holder, task, 3)
    answer = await settle(db, [Complete(shard.lease, b"%d" % index) for index, shard in enumerate(shards)])
    assert merges_published(answer) == 1
    assert (await merge_input(db, task.id))[1] == [b"0", b"1", b"2"]


async def test_a_last_shard_and_a_failed_one_at_a_barrier_end_in_one_way(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 2)
    first, second = await shards_of(db, holder, task, 2)
    await at_a_barrier(
        db,
        task.id,
        lambda: settle(db, [Fail(first.lease, "failure", "ATTEMPTS_EXHAUSTED", ERROR)]),
        lambda: settle(db, [Complete(second.lease, b"2")]),
    )
    assert (await row_of(db, task.id))["state"] == "FAILED"
    assert await merges_of(db, task) == 0
    letters = await db.fetch("select id from headrace_core.dead_letters where task_id = %(task)s", {"task": task.id})
    assert len(letters) == 1


async def test_a_merge_whose_consumer_was_killed_is_retried_with_the_same_parts(db: Database) -> None:
    holder, other = a_holder(), a_holder()
    task = await planned(db, holder, 3, needed=2)
    shards = await shards_of(db, holder, task, 3)
    await settle(db, [Complete(shards[0].lease, b"0"), Complete(shards[1].lease, b"1")])
    killed = await claimed(db, holder, task.id, MERGE)
    before = await merge_input(db, task.id)
    await take_over(db, await read_leases(db))
    late = await settle(db, [Complete(shards[2].lease, b"2")])
    assert not late.answers[0].applied
    retried = await claimed(db, other, task.id, MERGE)
    assert (retried.lease.epoch, retried.attempt) == (killed.lease.epoch + 1, 2)
    assert await merge_input(db, task.id) == before
    answers = await at_a_barrier(
        db,
        task.id,
        lambda: settle(db, [Complete(killed.lease, b'"zombie"')]),
        lambda: settle(db, [Complete(retried.lease, b'"right"')]),
    )
    assert [answer.answers[0].applied for answer in answers] == [False, True]
    row = await row_of(db, task.id)
    assert (row["state"], row["result"], await merges_of(db, task)) == ("COMPLETED", b'"right"', 1)


async def test_a_merge_that_fails_is_retried_and_then_fails_the_task(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 1)
    (shard,) = await shards_of(db, holder, task, 1)
    await settle(db, [Complete(shard.lease, b"0")])
    first = await claimed(db, holder, task.id, MERGE)
    await settle(db, [Reschedule(first.lease, 0.0, "failure", "HANDLER_ERROR", error=ERROR)])
    second = await claimed(db, holder, task.id, MERGE)
    await settle(db, [Fail(second.lease, "failure", "ATTEMPTS_EXHAUSTED", ERROR)])
    states = [(await row_of(db, task.id, unit))["state"] for unit in (-1, 0, MERGE)]
    assert states == ["FAILED", "COMPLETED", "FAILED"]


async def test_a_cancel_between_the_last_shard_and_the_merge_leaves_no_merge_to_run(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 1)
    (shard,) = await shards_of(db, holder, task, 1)
    done, cancelled = await at_a_barrier(
        db, task.id, lambda: settle(db, [Complete(shard.lease, b"0")]), lambda: cancel(db, task.id)
    )
    assert done.answers[0].applied
    assert isinstance(cancelled, Cancelled)
    assert await verdict_of(db, task, MERGE) is Verdict.ENDED
    assert (await row_of(db, task.id, MERGE))["state"] == "CANCELLED"
    assert [event["terminal"] for event in await events_of(db, task.id)].count(True) == 1
    assert await sequences_are_dense(db, task)


async def test_a_cancel_before_the_last_shard_leaves_no_merge_at_all(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 1)
    (shard,) = await shards_of(db, holder, task, 1)
    cancelled, late = await at_a_barrier(
        db, task.id, lambda: cancel(db, task.id), lambda: settle(db, [Complete(shard.lease, b"0")])
    )
    assert isinstance(cancelled, Cancelled)
    assert not late.answers[0].applied
    assert await merges_of(db, task) == 0
    assert (await row_of(db, task.id))["state"] == "CANCELLED"


@pytest.mark.parametrize("merge_first", [True, False])
async def test_a_cancel_and_the_end_of_the_merge_at_a_barrier_have_one_winner(
    db: Database, *, merge_first: bool
) -> None:
    holder = a_holder()
    task = await planned(db, holder, 0)
    merge = await claimed(db, holder, task.id, MERGE)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: settle(db, [Complete(merge.lease, b"[]")]),
        lambda: cancel(db, task.id),
    ]
    answers = await at_a_barrier(db, task.id, *(calls if merge_first else calls[::-1]))
    settled, cancelled = answers if merge_first else answers[::-1]
    assert settled.answers[0].applied is merge_first
    assert isinstance(cancelled, TaskTerminal if merge_first else Cancelled)
    assert (await row_of(db, task.id))["state"] == ("COMPLETED" if merge_first else "CANCELLED")
    assert (await row_of(db, task.id, MERGE))["state"] == ("COMPLETED" if merge_first else "CANCELLED")
    assert [event["terminal"] for event in await events_of(db, task.id)].count(True) == 1
