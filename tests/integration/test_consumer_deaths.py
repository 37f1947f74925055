"""A supervisor that sees a consumer die says so: its leases are lost at once, and a wrong word costs little."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from headrace_core.db.pool import Database
from headrace_core.stack.keeping import report_consumer
from headrace_core.stack.logs import StackLog
from headrace_core.tasks.deaths import report_death, worker_name
from headrace_core.tasks.kinds import ConsumerRow, live_consumers, upsert_consumer
from headrace_core.tasks.model import Complete, Holder
from headrace_core.tasks.renew import clear_suspicion
from headrace_core.tasks.settle import settle
from headrace_core.tasks.takeover import read_leases, take_over
from producer.lease_watch import LeaseWatch
from tests.factories import a_holder, claimed, row_of, submitted


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


def registered(holder: Holder) -> ConsumerRow:
    return ConsumerRow(holder.id, holder.worker, list(holder.kinds), ["default"])


async def dead_by_unit(db: Database) -> dict[str, bool]:
    return {str(item.lease.unit_id.task_id): item.dead for item in await read_leases(db)}


async def test_the_leases_of_a_reported_consumer_are_lost_in_the_next_round(db: Database) -> None:
    dead, alive = a_holder(worker="host/1"), a_holder(worker="host/2")
    for holder in (dead, alive):
        await upsert_consumer(db, registered(holder))
    lost, kept = await submitted(db), await submitted(db)
    await claimed(db, dead, lost.id)
    await claimed(db, alive, kept.id)
    assert await report_death(db, "host/1") == 1
    seen = LeaseWatch().see(await read_leases(db), 0.0, lambda _queue: 3600.0)
    (answer,) = (await take_over(db, seen)).answers
    assert answer.applied
    row = await row_of(db, lost.id)
    assert (row["state"], row["crashes"], row["interruptions"], row["suspect"]) == ("PENDING", 0, 1, True)
    assert (await row_of(db, kept.id))["state"] == "PROCESSING"
    assert [consumer.worker for consumer in await live_consumers(db)] == ["host/2"]


async def test_only_registered_consumers_are_reported_and_each_once(db: Database) -> None:
    await upsert_consumer(db, registered(a_holder(worker="host/1")))
    assert await report_death(db, "host/9") == 0
    assert await report_death(db, "host/1") == 1
    assert await report_death(db, "host/1") == 0


async def test_another_start_of_the_same_process_id_is_not_the_dead_one(db: Database) -> None:
    before, after = a_holder(worker="host/1"), a_holder(worker="host/1")
    await upsert_consumer(db, registered(before))
    await report_death(db, "host/1")
    await upsert_consumer(db, registered(after))
    old, new = await submitted(db), await submitted(db)
    await claimed(db, before, old.id)
    await claimed(db, after, new.id)
    assert await dead_by_unit(db) == {str(old.id): True, str(new.id): False}


async def test_a_wrong_report_is_cleared_by_the_next_sign_of_life_and_fences_what_was_taken(db: Database) -> None:
    holder = a_holder(worker="host/1")
    await upsert_consumer(db, registered(holder))
    taken, kept = await submitted(db), await submitted(db)
    unit = await claimed(db, holder, taken.id)
    await report_death(db, "host/1")
    await take_over(db, await read_leases(db))
    await claimed(db, holder, kept.id)
    await upsert_consumer(db, registered(holder))
    assert await dead_by_unit(db) == {str(kept.id): False}
    (late,) = (await settle(db, [Complete(unit.lease, b"1")])).answers
    assert not late.applied


async def test_a_holder_that_lives_clears_the_suspicion_of_what_still_waits(db: Database) -> None:
    holder = a_holder()
    waits, runs = await submitted(db), await submitted(db)
    leases = [(await claimed(db, holder, task.id)).lease for task in (waits, runs)]
    await take_over(db, await read_leases(db))
    await claimed(db, a_holder(), runs.id)
    assert await clear_suspicion(db, leases) == 1
    assert not (await row_of(db, waits.id))["suspect"]
    assert (await row_of(db, runs.id))["suspect"], "that start is another holder's matter"


async def test_the_keeper_reports_the_process_that_ended(db: Database, database_url: str, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    await upsert_consumer(db, registered(a_holder(worker=worker_name(process.pid))))
    await upsert_consumer(db, registered(a_holder(worker=worker_name(os.getpid()))))
    process.send_signal(signal.SIGKILL)
    await process.wait()
    log = StackLog(tmp_path / "log")
    await report_consumer(database_url, process.pid, log)
    log.close()
    assert [consumer.worker for consumer in await live_consumers(db)] == [worker_name(os.getpid())]
