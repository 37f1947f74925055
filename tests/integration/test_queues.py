"""Queues in Postgres: declared, paused, counted, purged."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from headrace_core.db.pool import Database
from headrace_core.errors import UnknownQueue
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks import queues
from headrace_core.tasks.model import Complete, Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.publication import take_unpublished
from headrace_core.tasks.settle import settle
from tests.factories import a_holder, claimed, events_of, planned, row_of, submitted
from tests.integration.status_rig import new_id


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    await queues.declare(database, [QueueSettings(name="default"), QueueSettings(name="slow", max_backlog=7)])
    yield database
    await database.close()


async def test_a_declaration_is_repeatable_and_keeps_a_pause(db: Database) -> None:
    await queues.pause(db, "slow")
    await queues.declare(db, [QueueSettings(name="slow", max_backlog=9, ack_wait=2.5)])
    loads = await queues.read_loads(db, 10)
    assert sorted(loads) == ["default", "slow"]
    assert loads["slow"].paused
    assert loads["slow"].settings == QueueSettings(name="slow", max_backlog=9, ack_wait=2.5)


async def test_pausing_twice_keeps_the_first_time(db: Database) -> None:
    await queues.pause(db, "slow")
    (first,) = await queues.read_figures(db, "slow")
    await queues.pause(db, "slow")
    (second,) = await queues.read_figures(db, "slow")
    assert first.paused_at is not None
    assert first.paused_at == second.paused_at
    await queues.resume(db, "slow")
    await queues.resume(db, "slow")
    assert (await queues.read_figures(db, "slow"))[0].paused_at is None


@pytest.mark.parametrize("call", [queues.pause, queues.resume, queues.read_figures])
async def test_an_undeclared_queue_is_unknown(db: Database, call: object) -> None:
    with pytest.raises(UnknownQueue, match="'nowhere'"):
        await call(db, "nowhere")  # type: ignore[operator]


async def test_a_paused_queue_is_published_only_after_the_resume(db: Database) -> None:
    await queues.pause(db, "slow")
    task = await submitted(db, queue="slow")
    assert await take_unpublished(db, 10, 0.0) == []
    await queues.resume(db, "slow")
    assert [item.unit_id.task_id for item in await take_unpublished(db, 10, 0.0)] == [task.id]


async def test_rates_of_a_busy_minute_are_those_of_the_newest_tasks(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "RATE_SAMPLE", 3)
    now_and_before = [
        await submitted(db, id=new_id(), queue=queue) for queue in ("slow", "default", "default", "default")
    ]
    holder = a_holder()
    for task in now_and_before[1:3]:
        await settle(db, [Complete((await claimed(db, holder, task.id)).lease, b"1")])
    # The newest three of the four took two seconds; the fourth, of another queue, is none of them.
    await db.execute("update headrace_core.units set created_at = now() - interval '2 seconds'")
    rates = {figures.settings.name: figures for figures in await queues.read_figures(db)}
    assert 1.4 < rates["default"].submit_rate <= 3 / 2
    assert rates["slow"].submit_rate == 0.0
    assert rates["default"].finish_rate == pytest.approx(2 / 60)


async def test_the_figures_of_a_queue(db: Database) -> None:
    holder = a_holder()
    waiting = await submitted(db)
    await submitted(db, run_at=datetime.now(UTC) + timedelta(hours=1))
    running, done, lost = [await submitted(db) for _ in range(3)]
    await claimed(db, holder, running.id)
    await settle(db, [Complete((await claimed(db, holder, done.id)).lease, b"1")])
    error = error_json("NON_RETRYABLE", "E", "x")
    await settle(db, [Fail((await claimed(db, holder, lost.id)).lease, "failure", "NON_RETRYABLE", error)])
    (figures,) = await queues.read_figures(db, "default")
    assert (figures.backlog, figures.delayed, figures.in_flight, figures.dead_letters) == (1, 1, 1, 1)
    now = datetime.now(UTC)
    assert 0 < figures.oldest_age <= (now - waiting.created_at).total_seconds() + 1
    assert figures.finish_rate == pytest.approx(2 / 60)
    (slow,) = await queues.read_figures(db, "slow")
    assert (slow.backlog, slow.oldest_age, slow.submit_rate, slow.finish_rate) == (0, 0.0, 0.0, 0.0)
    assert [item.settings.name for item in await queues.read_figures(db)] == ["default", "slow"]
    loads = await queues.read_loads(db, 1)
    assert (loads["default"].waiting, loads["default"].dead_letters) == (1, 1)
    assert (await queues.read_loads(db, 10))["default"].waiting == 2


async def test_a_purge_cancels_what_waits_and_nothing_else(db: Database) -> None:
    holder = a_holder()
    waiting = [await submitted(db), await submitted(db, run_at=datetime.now(UTC) + timedelta(hours=1))]
    running, elsewhere = await submitted(db), await submitted(db, queue="slow")
    await claimed(db, holder, running.id)
    sharded = await planned(db, holder, shards=2)
    now = datetime.now(UTC) + timedelta(seconds=1)
    wakes = await queues.purge(db, "default", now)
    assert {wake.task_id for wake in wakes} == {task.id for task in waiting}
    assert await queues.purge(db, "default", now) == []
    assert await queues.purge(db, "default", now, last_look=True) == []
    for task in waiting:
        row = await row_of(db, task.id)
        assert (row["state"], row["reason"], row["sequence"]) == ("CANCELLED", "PURGED", 2)
        last = (await events_of(db, task.id))[-1]
        assert (last["state"], last["reason"], last["terminal"]) == ("CANCELLED", "PURGED", True)
    states = [(await row_of(db, task.id))["state"] for task in (running, elsewhere, sharded)]
    assert states == ["PROCESSING", "PENDING", "PROCESSING"]


async def test_a_purge_takes_only_what_was_there_before(db: Database) -> None:
    await submitted(db)
    assert await queues.purge(db, "default", datetime.now(UTC) - timedelta(minutes=1)) == []
