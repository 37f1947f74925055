"""Dead letters in Postgres: found, redriven with what had finished kept, discarded, one sequence all along."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from headrace_core.db.pool import Database
from headrace_core.errors import DeadLetterResolved, DeadlinePassed, InvalidFields
from headrace_core.tasks import dead_letters
from headrace_core.tasks.cancel import expire
from headrace_core.tasks.claim import claim
from headrace_core.tasks.dead_letters import Chosen, DeadLetter, Filter
from headrace_core.tasks.model import MERGE, Complete, Delivered, Fail, Plan, TaskState, UnitId, Verdict
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.parts import merge_input
from headrace_core.tasks.settle import settle
from tests.factories import SHARDED_KIND, a_holder, claimed, events_of, planned, row_of, submitted


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def fail(db: Database, task_id: UUID, unit: int = -1) -> str:
    """The id of the dead letter that the failure of the unit makes; empty if the task goes on."""
    started = await claimed(db, a_holder(), task_id, unit)
    error = error_json("NON_RETRYABLE", "ValueError", "boom")
    settled = await settle(db, [Fail(started.lease, "failure", "NON_RETRYABLE", error)], sharded=[SHARDED_KIND])
    assert settled.answers[0].applied
    return settled.answers[0].dead_letter_id or ""


async def complete(db: Database, task_id: UUID, unit: int, result: bytes = b'"part"') -> None:
    started = await claimed(db, a_holder(), task_id, unit)
    settled = await settle(db, [Complete(started.lease, result)])
    assert settled.answers[0].applied


async def failed(db: Database, **changes: object) -> Chosen:
    task = await submitted(db, **changes)
    return Chosen(await fail(db, task.id), task.id, 1)


async def letter(db: Database, letter_id: str) -> DeadLetter:
    return (await dead_letters.find_letters(db, [letter_id], []))[letter_id]


async def assert_history_is_dense(db: Database, task_id: UUID) -> None:
    sequences = [event["sequence"] for event in await events_of(db, task_id)]
    assert sequences == list(range(1, len(sequences) + 1))
    assert (await row_of(db, task_id))["sequence"] == sequences[-1]


async def test_a_plain_task_is_redriven_with_fresh_budgets(db: Database) -> None:
    chosen = await failed(db)
    assert chosen.task_id is not None
    before = await row_of(db, chosen.task_id)
    done = await dead_letters.redrive(db, [chosen])
    (task,) = done.tasks
    assert (task.state, task.reason, task.generation) == (TaskState.PENDING, "REDRIVEN", 2)
    assert (task.attempt, task.failures, task.crashes, task.interruptions) == (0, 0, 0, 0)
    assert (task.error, task.ended_at, task.sequence) == (None, None, before["sequence"] + 1)
    (publication,) = done.publications
    assert (publication.unit_id.task_id, publication.resumed) == (task.id, True)
    assert publication.dispatch == before["dispatch"] + 1
    assert [(wake.task_id, wake.sequence) for wake in done.wakes] == [(task.id, task.sequence)]
    closed = await letter(db, chosen.id)
    assert (closed.resolution, closed.resolved_at is not None) == ("REDRIVEN", True)
    again = await claimed(db, a_holder(), task.id)
    assert (again.generation, again.attempt, again.lease.epoch) == (2, 1, 2)
    await assert_history_is_dense(db, task.id)


async def test_a_second_failure_makes_a_second_dead_letter(db: Database) -> None:
    chosen = await failed(db)
    assert chosen.task_id is not None
    await dead_letters.redrive(db, [chosen])
    second = await fail(db, chosen.task_id)
    assert second == f"{chosen.task_id}-2"
    by_task = await dead_letters.find_letters(db, [], [chosen.task_id])
    assert by_task[str(chosen.task_id)].id == second
    _, attempts = await dead_letters.read_content(db, by_task[str(chosen.task_id)])
    assert [attempt.generation for attempt in attempts] == [2]


async def test_a_redrive_runs_only_the_shards_that_had_not_finished(db: Database) -> None:
    task = await planned(db, a_holder(), shards=3)
    await complete(db, task.id, 0, b'"first"')
    running = await claimed(db, a_holder(), task.id, 1)
    letter_id = await fail(db, task.id, 2)
    done = await dead_letters.redrive(db, [Chosen(letter_id, task.id, 1)])
    assert (done.tasks[0].state, done.tasks[0].generation, done.tasks[0].done_shards) == (TaskState.PROCESSING, 2, 1)
    assert sorted(item.unit_id.unit for item in done.publications) == [1, 2]
    # The zombie of the old generation may not finish the shard.
    zombie = await settle(db, [Complete(running.lease, b'"zombie"')])
    assert not zombie.answers[0].applied
    (again,), _ = await claim(db, [Delivered(UnitId(task.id, 0), 1)], a_holder())
    assert again.verdict is Verdict.ENDED
    for unit in (1, 2):
        shard = await row_of(db, task.id, unit)
        assert (shard["state"], shard["generation"], shard["failures"]) == ("PENDING", 2, 0)
        await complete(db, task.id, unit, b'"again"')
    await complete(db, task.id, MERGE, b'"merged"')
    assert (await row_of(db, task.id))["state"] == "COMPLETED"
    assert (await merge_input(db, task.id))[1] == [b'"first"', b'"again"', b'"again"']
    await assert_history_is_dense(db, task.id)
    states = [
        event["state"] for event in await events_of(db, task.id) if event["type"] == "state" and event["unit"] == -1
    ]
    assert ("PENDING", "PROCESSING") in list(pairwise(states[2:]))


async def test_a_redrive_after_a_failed_merge_merges_the_same_parts(db: Database) -> None:
    task = await planned(db, a_holder(), shards=3, needed=2)
    await complete(db, task.id, 0)
    await complete(db, task.id, 2)
    letter_id = await fail(db, task.id, MERGE)
    done = await dead_letters.redrive(db, [Chosen(letter_id, task.id, 1)])
    assert [item.unit_id.unit for item in done.publications] == [MERGE]
    assert (await row_of(db, task.id, 1))["state"] == "CANCELLED"
    await complete(db, task.id, MERGE, b'"merged"')
    assert (await row_of(db, task.id))["state"] == "COMPLETED"
    await assert_history_is_dense(db, task.id)


async def test_a_redrive_repairs_a_plan_that_is_complete_and_has_no_merge(db: Database) -> None:
    task = await planned(db, a_holder(), shards=2)
    await complete(db, task.id, 0)
    letter_id = await fail(db, task.id, 1)
    await db.fetch(
        "update headrace_core.units set state = 'COMPLETED', result = '1'"
        " where task_id = %(id)s and unit = 1 returning 1",
        {"id": task.id},
    )
    done = await dead_letters.redrive(db, [Chosen(letter_id, task.id, 1)])
    assert [item.unit_id.unit for item in done.publications] == [MERGE]


async def test_a_failed_plan_is_redriven_as_a_plain_task(db: Database) -> None:
    task = await submitted(db, kind=SHARDED_KIND)
    letter_id = await fail(db, task.id)
    done = await dead_letters.redrive(db, [Chosen(letter_id, task.id, 1)])
    assert (done.tasks[0].state, done.tasks[0].total_shards) == (TaskState.PENDING, None)


async def test_a_new_payload_drops_plan_and_parts(db: Database) -> None:
    task = await planned(db, a_holder(), shards=2)
    await complete(db, task.id, 0)
    zombie = await claimed(db, a_holder(), task.id, 1)
    await settle(db, [Fail(zombie.lease, "failure", "NON_RETRYABLE", error_json("NON_RETRYABLE", "E", "x"))])
    done = await dead_letters.redrive(db, [Chosen(f"{task.id}-1", task.id, 1)], payload=b'{"new": true}')
    assert (done.tasks[0].state, done.tasks[0].total_shards, done.tasks[0].done_shards) == ("PENDING", None, 0)
    units = await db.fetch("select unit from headrace_core.units where task_id = %(id)s", {"id": task.id})
    assert [row["unit"] for row in units] == [-1]
    plan = await claimed(db, a_holder(), task.id)
    assert plan.payload == b'{"new": true}'
    assert plan.lease.epoch > zombie.lease.epoch
    await settle(db, [Plan(plan.lease, (b"{}",), 1)])
    assert (await settle(db, [Complete(zombie.lease, b"0")])).answers[0].applied is False
    await complete(db, task.id, 0)
    await complete(db, task.id, MERGE)
    assert (await row_of(db, task.id))["state"] == "COMPLETED"
    await assert_history_is_dense(db, task.id)


async def test_a_new_payload_never_gives_a_shards_epoch_out_twice(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, shards=1)
    zombie = await claimed(db, holder, task.id, 0)
    error = error_json("NON_RETRYABLE", "E", "x")
    await settle(db, [Fail(zombie.lease, "failure", "NON_RETRYABLE", error)])
    await dead_letters.redrive(db, [Chosen(f"{task.id}-1", task.id, 1)], payload=b"{}")
    plan = await claimed(db, holder, task.id)
    await settle(db, [Plan(plan.lease, (b"{}",), 1)])
    successor = await claimed(db, holder, task.id, 0)
    assert successor.lease.epoch > zombie.lease.epoch
    assert not (await settle(db, [Complete(zombie.lease, b"0")])).answers[0].applied
    # Its history must not collide with the dropped shard's either.
    await settle(db, [Fail(successor.lease, "failure", "NON_RETRYABLE", error)])
    assert (await row_of(db, task.id))["state"] == "FAILED"


async def test_a_passed_deadline_needs_a_new_one(db: Database) -> None:
    chosen = await failed(db, deadline=datetime.now(UTC) + timedelta(hours=1))
    await db.fetch(
        "update headrace_core.units set deadline = now() - interval '1 s' where task_id = %(id)s returning 1",
        {"id": chosen.task_id},
    )
    with pytest.raises(DeadlinePassed):
        await dead_letters.redrive(db, [chosen], strict=True)
    assert (await dead_letters.redrive(db, [chosen])).tasks == []
    ahead = datetime.now(UTC) + timedelta(hours=1)
    done = await dead_letters.redrive(db, [chosen], deadline=ahead, strict=True)
    assert done.tasks[0].deadline == ahead
    assert await expire(db) == []


async def test_a_strict_redrive_changes_nothing_where_one_is_refused(db: Database) -> None:
    first, second = await failed(db), await failed(db)
    await dead_letters.redrive(db, [second])
    with pytest.raises(DeadLetterResolved):
        await dead_letters.redrive(db, [first, second], strict=True)
    assert first.task_id is not None
    assert (await row_of(db, first.task_id))["state"] == "FAILED"
    await dead_letters.record_unparseable(db, "17-1", "default", b"\x00junk", "no JSON")
    with pytest.raises(InvalidFields):
        await dead_letters.redrive(db, [first, Chosen("17-1", None, 0)], strict=True)
    assert len((await dead_letters.redrive(db, [first, second, Chosen("17-1", None, 0)])).tasks) == 1


async def test_a_discard_is_the_tasks_last_event(db: Database) -> None:
    chosen = await failed(db)
    assert chosen.task_id is not None
    done = await dead_letters.discard(db, [chosen])
    assert done.count == 1
    row = await row_of(db, chosen.task_id)
    assert (row["state"], row["reason"]) == ("CANCELLED", "DISCARDED")
    last = (await events_of(db, chosen.task_id))[-1]
    assert (last["state"], last["reason"], last["terminal"]) == ("CANCELLED", "DISCARDED", True)
    assert [(wake.task_id, wake.sequence) for wake in done.wakes] == [(chosen.task_id, last["sequence"])]
    assert (await dead_letters.discard(db, [chosen])).count == 0
    assert (await dead_letters.redrive(db, [chosen])).tasks == []
    await assert_history_is_dense(db, chosen.task_id)


async def test_a_message_that_was_no_task_is_recorded_once_and_can_be_discarded(db: Database) -> None:
    for _ in range(2):
        await dead_letters.record_unparseable(db, "1700000000-7", "default", b"\xff" * 100_000, "not JSON")
    found = await letter(db, "1700000000-7")
    assert (found.task_id, found.generation, found.reason) == (None, 0, "UNPARSEABLE_MESSAGE")
    content, attempts = await dead_letters.read_content(db, found)
    assert (content, attempts) == (b"\xff" * 65536, [])
    assert (await dead_letters.discard(db, [Chosen(found.id, None, 0)])).count == 1
    assert (await letter(db, found.id)).resolution == "DISCARDED"


async def test_lists_are_newest_first_page_by_page_and_filtered(db: Database) -> None:
    letters = [await failed(db, namespace=f"n{index % 2}") for index in range(5)]
    page = await dead_letters.list_letters(db, Filter(), 3, None)
    rest = await dead_letters.list_letters(db, Filter(), 3, (page[-1].created_at, page[-1].id))
    assert [item.id for item in page + rest] == [item.id for item in reversed(letters)]
    named = await dead_letters.list_letters(db, Filter(namespace="n1", kind="plain", queue="default"), 10, None)
    assert {item.id for item in named} == {letters[1].id, letters[3].id}
    assert await dead_letters.list_letters(db, Filter(reason="CRASHED"), 10, None) == []
    early = Filter(failed_before=page[-1].created_at)
    assert len(await dead_letters.list_letters(db, early, 10, None)) == 2
    await dead_letters.discard(db, letters[:1])
    assert len(await dead_letters.list_letters(db, Filter(), 10, None)) == 4
    assert len(await dead_letters.list_letters(db, Filter(include_resolved=True), 10, None)) == 5
    assert len(await dead_letters.match_letters(db, Filter(), 10)) == 4


async def test_turns_under_a_rate_come_one_by_one_and_only_to_one_replica(db: Database) -> None:
    letters = [await failed(db) for _ in range(3)]
    await dead_letters.schedule(db, letters, 1000.0, None)
    assert await dead_letters.match_letters(db, Filter(), 10) == []
    turns: list[dead_letters.Turn] = []
    while len(turns) < 3:
        turns += await dead_letters.take_turns(db)
    assert {turn.letter for turn in turns} == set(letters)
    assert await dead_letters.take_turns(db) == []
    await dead_letters.give_turns_up(db, [letters[0].id])
    assert [item.id for item in await dead_letters.match_letters(db, Filter(), 10)] == [letters[0].id]


async def test_the_stream_is_told_of_what_is_open_and_of_what_is_closed(db: Database) -> None:
    chosen = await failed(db)
    assert [item.id for item in await dead_letters.take_unpublished(db)] == [chosen.id]
    assert await dead_letters.take_unremoved(db) == []
    await dead_letters.mark_published(db, 1, [chosen.id])
    assert await dead_letters.take_unpublished(db) == []
    await dead_letters.discard(db, [chosen])
    assert await dead_letters.take_unremoved(db) == [(chosen.id, "default")]
    await dead_letters.mark_removed(db, [chosen.id])
    assert await dead_letters.take_unremoved(db) == []


async def test_an_entry_published_after_its_removal_is_removed_again(db: Database) -> None:
    chosen = await failed(db)
    await dead_letters.discard(db, [chosen])
    await dead_letters.mark_removed(db, [chosen.id])
    await dead_letters.mark_published(db, 1, [chosen.id])
    assert await dead_letters.take_unremoved(db) == [(chosen.id, "default")]


async def test_unknown_ids_are_missing(db: Database) -> None:
    assert await dead_letters.find_letters(db, ["1-1"], [uuid4()]) == {}
