"""A release and the one before it, as processes on one database and one broker: nothing is lost, nothing is twice."""

import asyncio
from pathlib import Path

import pytest

from headrace import Client
from headrace_core.db.migrate import migrate, missing_versions
from headrace_core.db.pool import Database
from tests.fixtures.fleet import Fleet, fleet
from tests.fixtures.waiting import eventually
from tests.upgrade.conftest import add_both, assert_old_is_old
from tests.upgrade.load import assert_ended_once, complete, watched

SERVICES = ("producer", "consumer", "status")


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    path = tmp_path / "ledger"
    path.touch()
    return str(path)


def of(age: str) -> list[str]:
    return [f"{module}-{age}" for module in SERVICES]


@pytest.mark.parametrize(("accepts", "runs"), [("old", "new"), ("new", "old")])
async def test_what_one_release_accepts_the_other_runs(
    both: Fleet, db: Database, ledger: str, accepts: str, runs: str
) -> None:
    await both.start(f"producer-{accepts}", f"consumer-{runs}", "status-old", "status-new")
    async with (
        both.client(f"producer-{accepts}", "status-old") as one,
        both.client(f"producer-{accepts}", "status-new") as other,
    ):
        ids = await complete([one, other], 20, ledger, "pair")
        await assert_ended_once(db, ids)
        failed = await one.submit("hopeless", {"ledger": ledger})
        task = await other.wait(failed.id, timeout=20)
        assert [letter.id async for letter in one.dead_letters.list()] == [f"{failed.id}-1"]
        assert (task.generation, task.attempts) == (1, 1)


async def test_both_at_once_under_load_and_every_watch_tells_the_same(both: Fleet, db: Database, ledger: str) -> None:
    await both.start()
    async with (
        both.client("producer-old", "status-new") as one,
        both.client("producer-new", "status-old") as other,
    ):
        ids = await complete([one, other], 60, ledger, "both")
        long = await one.submit("counts", {"steps": 20, "pause": 0.05})
        live, later = await asyncio.gather(watched(one, long.id), watched(other, long.id))
        assert live == later
        assert [sequence for sequence, *_ in live] == list(range(1, len(live) + 1))
        for task_id in ids[:10]:
            assert await watched(one, task_id) == await watched(other, task_id)
        await assert_ended_once(db, [*ids, long.id])
        failed = await one.submit("hopeless", {"ledger": ledger})
        await other.wait(failed.id, timeout=20)
        await other.dead_letters.redrive(ids=[f"{failed.id}-1"])
        await eventually(lambda: _open_letters(one, [f"{failed.id}-2"]), within=20)
    assert await both.stop() == [0] * 6


@pytest.mark.parametrize(("dies", "takes_over"), [("old", "new"), ("new", "old")])
async def test_what_one_release_held_when_it_died_the_other_takes_over(
    both: Fleet, ledger: str, tmp_path: Path, dies: str, takes_over: str
) -> None:
    release = tmp_path / "release"
    await both.start("producer-old", "producer-new", f"consumer-{dies}", f"status-{takes_over}")
    async with both.client(f"producer-{takes_over}", f"status-{takes_over}") as client:
        task = await client.submit("waits", {"ledger": ledger, "release": str(release)})
        await eventually(lambda: Path(ledger).read_text() == "start 1\n", within=20)
        await both.start(f"consumer-{takes_over}")
        await both.services[f"consumer-{dies}"].kill()
        await eventually(lambda: Path(ledger).read_text() == "start 1\nstart 2\n", within=20)
        release.touch()
        assert await client.result(task.id, timeout=20) == {"epoch": 2}
        ended = await client.get(task.id)
        assert (ended.budgets.crashes, ended.budgets.failures, ended.budgets.interruptions) == (0, 0, 1)


async def test_a_release_comes_and_goes_back_under_running_work(
    old_schema_url: str, old_db: Database, nats_url: str, old_code: Path, ledger: str, tmp_path: Path
) -> None:
    """Migrate under the old services, roll the new ones in and out again: the old ones go on on the new schema."""
    assert await missing_versions(old_schema_url), "the old code knows an older schema"
    async with fleet(old_schema_url, nats_url, tmp_path) as services:
        add_both(services, old_code)
        await services.start(*of("old"))
        async with services.client("producer-old", "status-old") as client:
            first = asyncio.create_task(complete([client], 40, ledger, "before"))
            await eventually(lambda: _accepted(old_db, 10), within=20)
            await migrate(old_schema_url)
            ids = await first
            held = await client.submit("counts", {"steps": 40, "pause": 0.1})
            ids += [held.id, *await complete([client], 10, ledger, "migrated")]
        await services.start(*of("new"))
        assert await services.stop(*of("old")) == [0, 0, 0]
        async with services.client("producer-new", "status-new") as client:
            ids += await complete([client], 20, ledger, "new")
            await services.start(*of("old"))
            assert await services.stop(*of("new")) == [0, 0, 0]
        async with services.client("producer-old", "status-old") as client:
            ids += await complete([client], 20, ledger, "back")
            assert await client.result(held.id, timeout=30) == {"steps": 40}
        await assert_ended_once(old_db, ids)
        assert_old_is_old(services, old_code)


async def _open_letters(client: Client, expected: list[str]) -> bool:
    return [letter.id async for letter in client.dead_letters.list()] == expected


async def _accepted(db: Database, count: int) -> bool:
    (row,) = await db.fetch("select count(*) >= %(count)s as enough from headrace_core.units", {"count": count})
    return bool(row["enough"])
