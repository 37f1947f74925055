"""The statements that change a task's state, against a real Postgres: fences, budgets, fan-in, idempotency."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from headrace_core.db.pool import Database
from headrace_core.errors import TaskNotFound, TaskTerminal
from headrace_core.tasks.cancel import cancel, expire
from headrace_core.tasks.claim import claim, claim_due
from headrace_core.tasks.model import (
    MERGE,
    TASK,
    Claim,
    Complete,
    Delivered,
    Fail,
    Holder,
    Report,
    Reschedule,
    TaskState,
    UnitId,
    Verdict,
)
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.parts import merge_input
from headrace_core.tasks.renew import renew, save_checkpoint
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from headrace_core.tasks.states import may_become
from headrace_core.tasks.submit import find_by_key, submit
from headrace_core.tasks.takeover import read_leases, take_over
from headrace_core.telemetry import metrics
from tests.factories import a_holder, a_task, claimed, events_of, planned, row_of, submitted


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def deliver(db: Database, task_id: UUID, unit: int = TASK, holder: Holder | None = None) -> Claim:
    (answer,), _ = await claim(db, [Delivered(UnitId(task_id, unit), 1)], holder or a_holder())
    return answer


def error(text: str = "boom") -> bytes:
    return error_json("HANDLER_ERROR", "ValueError", text)


async def test_a_task_is_accepted_with_its_first_event(db: Database) -> None:
    (answer,) = await submit(db, [a_task(labels={"a": "b"})])
    assert answer.created
    assert answer.task.state is TaskState.PENDING
    (event,) = await events_of(db, answer.task.id)
    assert (event["sequence"], event["state"]) == (1, "PENDING")
    assert (await row_of(db, answer.task.id))["payload"] == b'{"n": 1}'


async def test_one_key_gives_one_task_and_tells_another_request_apart(db: Database) -> None:
    first = a_task(idempotency_key="k")
    again = first._replace(id=uuid4())
    other = first._replace(id=uuid4(), fingerprint=b"another")
    (one,) = await submit(db, [first])
    same, different = await submit(db, [again, other])
    assert (same.task.id, same.created, same.reused) == (one.task.id, False, False)
    assert (different.task.id, different.reused) == (one.task.id, True)
    found = await find_by_key(db, "default", "k")
    assert found is not None
    assert found[0].id == one.task.id


async def test_a_commit_repeated_with_the_same_ids_is_one_task(db: Database) -> None:
    task = a_task()
    await submit(db, [task])
    (again,) = await submit(db, [task])
    assert again.created
    assert not again.reused


async def test_one_key_from_fifty_concurrent_batches_is_one_task(db: Database) -> None:
    answers = await asyncio.gather(*(submit(db, [a_task(idempotency_key="k"), a_task()]) for _ in range(50)))
    assert len({batch[0].task.id for batch in answers}) == 1
    assert sum(batch[0].created for batch in answers) == 1


async def test_a_claim_takes_the_next_epoch_and_says_so_in_an_event(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    assert (unit.lease.epoch, unit.attempt, unit.type, unit.payload) == (1, 1, "TASK", b'{"n": 1}')
    assert [event["state"] for event in await events_of(db, task.id)] == ["PENDING", "PROCESSING"]


async def test_what_a_delivery_can_meet(db: Database) -> None:
    running, done, later = await submitted(db), await submitted(db), None
    later = await submitted(db, run_at=datetime.now(UTC) + timedelta(hours=1))
    unknown = await submitted(db, kind="unknown")
    holder = a_holder()
    await claimed(db, holder, running.id)
    await settle(db, [Complete((await claimed(db, holder, done.id)).lease, b"{}")])
    verdicts = [await deliver(db, task.id) for task in (running, done, later, unknown)]
    assert [item.verdict for item in verdicts] == [
        Verdict.LEASED,
        Verdict.ENDED,
        Verdict.NOT_DUE,
        Verdict.NO_HANDLER,
    ]
    assert (await deliver(db, uuid4())).verdict is Verdict.GONE
    assert (await row_of(db, unknown.id))["attempt"] == 0


async def test_a_paused_queue_starts_nothing(db: Database) -> None:
    await db.fetch(
        "insert into headrace_core.queues (name, paused_at) values ('default', now()) "
        "on conflict (name) do update set paused_at = now() returning 1"
    )
    task = await submitted(db)
    assert (await deliver(db, task.id)).verdict is Verdict.PAUSED
    assert await claim_due(db, "default", 10, a_holder()) == ([], [])


async def test_a_unit_delivered_twice_in_one_batch_starts_once(db: Database) -> None:
    task = await submitted(db)
    delivered = Delivered(UnitId(task.id), 1)
    answers, wakes = await claim(db, [delivered, delivered], a_holder())
    assert [item.verdict for item in answers] == [Verdict.CLAIMED, Verdict.LEASED]
    assert len(wakes) == 1


async def test_concurrent_claims_start_every_task_once(db: Database) -> None:
    tasks = [answer.task for answer in await submit(db, [a_task() for _ in range(50)])]
    forward = [Delivered(UnitId(task.id), 1) for task in tasks]
    delivered = asyncio.gather(*(claim(db, forward if n % 2 else forward[::-1], a_holder()) for n in range(8)))
    polled = asyncio.gather(*(claim_due(db, "default", 20, a_holder()) for _ in range(4)))
    taken = [item.unit_id for answers, _ in await delivered for item in answers if item.verdict is Verdict.CLAIMED]
    taken += [unit.lease.unit_id for units, _ in await polled for unit in units]
    assert sorted(taken) == sorted(UnitId(task.id) for task in tasks)


async def test_a_result_is_stored_once_and_only_by_the_lease(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    zombie = unit.lease._replace(holder=uuid4())
    older = unit.lease._replace(epoch=0)
    fenced = await settle(db, [Complete(zombie, b'"zombie"')])
    stale = await settle(db, [Complete(older, b'"older"')])
    done = await settle(db, [Complete(unit.lease, b'{"ok": true}')])
    again = await settle(db, [Complete(unit.lease, b'{"ok": false}')])
    assert [batch.answers[0].applied for batch in (fenced, stale, done, again)] == [False, False, True, False]
    row = await row_of(db, task.id)
    assert (row["state"], row["result"], row["holder"]) == ("COMPLETED", b'{"ok": true}', None)
    events = await events_of(db, task.id)
    assert [event["sequence"] for event in events] == [1, 2, 3]
    assert events[-1]["terminal"]


async def test_a_retry_keeps_the_attempt_and_waits_until_due(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    batch = await settle(db, [Reschedule(unit.lease, 30, "failure", "HANDLER_ERROR", error(), checkpoint=b"[1]")])
    row = await row_of(db, task.id)
    assert batch.publications == []
    assert (row["state"], row["failures"], row["dispatch"], row["checkpoint"]) == ("PENDING", 1, 2, b"[1]")
    assert (await deliver(db, task.id)).verdict is Verdict.NOT_DUE
    (attempt,) = await db.fetch("select * from headrace.attempts where task_id = %(t)s", {"t": task.id})
    assert (attempt["attempt"], attempt["outcome"], attempt["unit_type"]) == (1, "PENDING", "TASK")


async def test_a_hand_back_is_published_at_once_under_a_new_dispatch(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    batch = await settle(db, [Reschedule(unit.lease, 0, "interruption", "INTERRUPTED")])
    (publication,) = batch.publications
    assert publication.subject_suffix == "default.resume"
    assert publication.message_id == f"{task.id}/-1/2"
    again = await claimed(db, a_holder(), task.id)
    assert (again.lease.epoch, again.attempt, again.interruptions, again.failures) == (2, 2, 1, 0)


async def test_a_failure_for_good_is_one_transaction_with_its_dead_letter(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    batch = await settle(db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error())])
    assert batch.answers[0].dead_letter_id == f"{task.id}-1"
    row = await row_of(db, task.id)
    assert (row["state"], row["reason"], row["failures"]) == ("FAILED", "NON_RETRYABLE", 1)
    (letter,) = await db.fetch("select * from headrace.dead_letters where task_id = %(t)s", {"t": task.id})
    assert letter["reason"] == "NON_RETRYABLE"
    last = (await events_of(db, task.id))[-1]
    assert (last["state"], last["terminal"], last["sequence"]) == ("FAILED", True, row["sequence"])


async def test_each_dead_letter_is_counted_once_by_its_reason(db: Database) -> None:
    def counted(reason: str) -> float:
        return metrics.REGISTRY.get_sample_value("headrace_dead_letters_total", {"reason": reason}) or 0.0

    before = counted("NON_RETRYABLE"), counted("QUORUM_LOST")
    unit = await claimed(db, a_holder(), (await submitted(db)).id)
    for _ in range(2):  # the second is fenced
        await settle(db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error())])
    holder = a_holder()
    task = await planned(db, holder, 3, needed=2)
    for shard in [await claimed(db, holder, task.id, index) for index in range(2)]:
        await settle(db, [Fail(shard.lease, "failure", "ATTEMPTS_EXHAUSTED", error())])
    assert (counted("NON_RETRYABLE"), counted("QUORUM_LOST")) == (before[0] + 1, before[1] + 1)


async def test_a_plan_makes_shards_and_the_last_shard_makes_the_merge(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 3)
    shards = [await claimed(db, holder, task.id, index) for index in range(3)]
    assert [shard.payload for shard in shards] == [b'{"shard": 0}', b'{"shard": 1}', b'{"shard": 2}']
    first = await settle(db, [Complete(shards[2].lease, b"2")])
    assert first.publications == []
    assert (await row_of(db, task.id))["state"] == "PROCESSING"
    last = await settle(db, [Complete(shard.lease, b"%d" % n) for n, shard in enumerate(shards[:2])])
    (publication,) = last.publications
    assert publication.unit_id == UnitId(task.id, MERGE)
    merge = await claimed(db, holder, task.id, MERGE)
    assert await merge_input(db, task.id) == (b'{"n": 1}', [b"0", b"1", b"2"])
    await settle(db, [Complete(merge.lease, b'"merged"')])
    row = await row_of(db, task.id)
    assert (row["state"], row["result"], row["done_shards"]) == ("COMPLETED", b'"merged"', 3)
    sequences = [event["sequence"] for event in await events_of(db, task.id)]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_shards_settled_at_once_by_many_make_one_merge(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 40)
    shards = [await claimed(db, holder, task.id, index) for index in range(40)]
    batches = await asyncio.gather(*(settle(db, [Complete(s.lease, b"1") for s in shards[n::8]]) for n in range(8)))
    assert [p.unit_id.unit for batch in batches for p in batch.publications] == [MERGE]
    assert (await row_of(db, task.id))["done_shards"] == 40


async def test_no_shards_means_an_immediate_merge_of_nothing(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 0)
    merge = await claimed(db, holder, task.id, MERGE)
    assert (await merge_input(db, task.id))[1] == []
    assert (await settle(db, [Complete(merge.lease, b"[]")])).answers[0].applied


async def test_a_quorum_freezes_the_parts(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 3, needed=2)
    shards = [await claimed(db, holder, task.id, index) for index in range(3)]
    await settle(db, [Complete(shards[0].lease, b"0"), Complete(shards[2].lease, b"2")])
    late = await settle(db, [Complete(shards[1].lease, b"1")])
    assert not late.answers[0].applied
    assert (await merge_input(db, task.id))[1] == [b"0", b"2"]


async def test_a_lost_shard_fails_the_task_and_keeps_what_is_done(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 3)
    shards = [await claimed(db, holder, task.id, index) for index in range(3)]
    await settle(db, [Complete(shards[0].lease, b"0")])
    await settle(db, [Fail(shards[1].lease, "failure", "ATTEMPTS_EXHAUSTED", error("bad shard"))])
    states = [(await row_of(db, task.id, unit))["state"] for unit in (-1, 0, 1, 2)]
    assert states == ["FAILED", "COMPLETED", "FAILED", "CANCELLED"]
    assert not (await settle(db, [Complete(shards[2].lease, b"2")])).answers[0].applied
    assert b"bad shard" in (await row_of(db, task.id))["error"]


async def test_within_a_quorum_a_shard_may_fail_and_beyond_it_the_task_does(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 3, needed=2)
    shards = [await claimed(db, holder, task.id, index) for index in range(3)]
    await settle(db, [Fail(shards[0].lease, "failure", "ATTEMPTS_EXHAUSTED", error())])
    assert (await row_of(db, task.id))["state"] == "PROCESSING"
    await settle(db, [Fail(shards[1].lease, "failure", "ATTEMPTS_EXHAUSTED", error())])
    row = await row_of(db, task.id)
    assert (row["state"], row["reason"]) == ("FAILED", "QUORUM_LOST")


async def test_a_cancelled_task_never_completes(db: Database) -> None:
    holder = a_holder()
    task = await planned(db, holder, 2)
    shard = await claimed(db, holder, task.id, 0)
    answer = await cancel(db, task.id)
    assert answer.changed
    assert answer.task.state is TaskState.CANCELLED
    assert not (await settle(db, [Complete(shard.lease, b"0")])).answers[0].applied
    assert (await deliver(db, task.id, 1, holder)).verdict is Verdict.ENDED
    assert not (await cancel(db, task.id)).changed
    assert await renew(db, [shard.lease]) == set()


async def test_cancelling_what_has_ended_or_never_was_is_refused(db: Database) -> None:
    task = await submitted(db)
    await settle(db, [Complete((await claimed(db, a_holder(), task.id)).lease, b"{}")])
    with pytest.raises(TaskTerminal):
        await cancel(db, task.id)
    with pytest.raises(TaskNotFound):
        await cancel(db, uuid4())


async def test_a_passed_deadline_expires_waiting_and_running_tasks(db: Database) -> None:
    soon = datetime.now(UTC) + timedelta(milliseconds=1)
    waiting, running = await submitted(db, deadline=soon), await submitted(db)
    await claimed(db, a_holder(), running.id)
    await db.fetch(
        "update headrace_core.units set deadline = now() - interval '1 s' where task_id = %(t)s returning 1",
        {"t": running.id},
    )
    await db.fetch("select pg_sleep(0.01)")
    assert {wake.task_id for wake in await expire(db)} == {waiting.id, running.id}
    assert (await row_of(db, running.id))["state"] == "EXPIRED"


async def test_reports_get_dense_sequences_and_a_lost_lease_none(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    zombie = unit.lease._replace(epoch=7)
    wakes = await report(
        db,
        [
            Report(unit.lease, "progress", 0.25, "a quarter"),
            Report(zombie, "progress", 0.9, "lies"),
            Report(unit.lease, "output", text="hel", byte_offset=0),
            Report(unit.lease, "output", text="lo", byte_offset=3),
        ],
    )
    assert [wake.sequence for wake in wakes] == [5]
    events = (await events_of(db, task.id))[2:]
    assert [(e["sequence"], e["type"], e["text"]) for e in events] == [
        (3, "progress", "a quarter"),
        (4, "output", "hel"),
        (5, "output", "lo"),
    ]
    row = await row_of(db, task.id)
    assert (row["fraction"], row["message"]) == (0.25, "a quarter")


async def test_a_checkpoint_belongs_to_the_lease(db: Database) -> None:
    task = await submitted(db)
    unit = await claimed(db, a_holder(), task.id)
    assert await save_checkpoint(db, unit.lease, b'{"page": 3}')
    assert not await save_checkpoint(db, unit.lease._replace(epoch=9), b"{}")
    await settle(db, [Reschedule(unit.lease, 0, "interruption", "INTERRUPTED")])
    assert (await claimed(db, a_holder(), task.id)).checkpoint == b'{"page": 3}'


async def test_a_takeover_spares_a_holder_that_renewed(db: Database) -> None:
    dead, alive = await submitted(db), await submitted(db)
    holder = a_holder()
    await claimed(db, holder, dead.id)
    living = await claimed(db, holder, alive.id)
    seen = await read_leases(db)
    assert await renew(db, [living.lease]) == {living.lease.unit_id}
    answers = (await take_over(db, seen)).answers
    by_task = {item.lease.unit_id.task_id: answer.applied for item, answer in zip(seen, answers, strict=True)}
    assert by_task == {dead.id: True, alive.id: False}
    row = await row_of(db, dead.id)
    assert (row["state"], row["interruptions"], row["suspect"]) == ("PENDING", 1, True)


async def test_every_recorded_history_follows_the_transition_table(db: Database) -> None:
    holder = a_holder()
    task = await submitted(db)
    unit = await claimed(db, holder, task.id)
    await settle(db, [Reschedule(unit.lease, 0, "failure", "HANDLER_ERROR", error())])
    unit = await claimed(db, holder, task.id)
    await settle(db, [Fail(unit.lease, "failure", "ATTEMPTS_EXHAUSTED", error())])
    states = [TaskState(event["state"]) for event in await events_of(db, task.id)]
    assert all(may_become(*step) for step in pairwise(states))


async def test_mixed_batches_in_opposite_orders_do_not_deadlock(db: Database) -> None:
    holder = a_holder()
    tasks = [answer.task for answer in await submit(db, [a_task() for _ in range(30)])]
    units = [await claimed(db, holder, task.id) for task in tasks]
    settles = [Complete(unit.lease, b"1") for unit in units]
    await asyncio.gather(
        settle(db, settles),
        settle(db, settles[::-1]),
        *(cancel(db, task.id) for task in tasks[::-1]),
        return_exceptions=True,
    )
    for task in tasks:
        events = await events_of(db, task.id)
        assert sum(event["terminal"] for event in events) == 1
        assert [event["sequence"] for event in events] == [1, 2, 3]
