"""Migrations: idempotent, safe from many processes, and the dump for reviews says what they make."""

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from headrace_core.cli import db
from headrace_core.db import migrate as module
from headrace_core.db.migrate import available, migrate, missing_versions
from headrace_core.stack.schema import SCHEMA_FILE, dump
from tests.fixtures.waiting import eventually


async def test_the_dump_is_what_the_migrations_make(database_url: str) -> None:
    told = SCHEMA_FILE.read_text(encoding="utf-8")
    assert await dump(database_url) == told, "run `python -m headrace_core.stack.schema` and review the change"


async def test_many_may_migrate_at_once_and_each_version_is_applied_once(empty_database_url: str) -> None:
    assert await missing_versions(empty_database_url) == list(available())
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))
    assert sorted(version for versions in applied for version in versions) == sorted(available())
    assert await missing_versions(empty_database_url) == []
    assert await migrate(empty_database_url) == []


@pytest.mark.parametrize("view", ["tasks", "shards", "attempts", "dead_letters", "audit"])
async def test_the_public_views_can_be_read(database_url: str, view: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        found = await connection.execute(f"select count(*) from headrace.{view}".encode())
        assert await found.fetchone() == (0,)


NEW = "9999_a_column_more"


@pytest.fixture
def _new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that brings one migration more; it needs the table of queues for itself. Its tries are shorter."""
    known = available()
    monkeypatch.setattr(module, "available", lambda: {**known, NEW: "alter table headrace_core.queues add extra text"})
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(module, "GIVE_WAY_SECONDS", 0.1)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The patience left at each try."""
    seen: list[float] = []
    attempt = module._attempt

    async def noted(database_url: str, patience: float, note: Callable[[str], None], after_deploy: bool) -> list[str]:
        seen.append(patience)
        return await attempt(database_url, patience, note, after_deploy)

    monkeypatch.setattr(module, "_attempt", noted)
    return seen


@pytest.mark.usefixtures("_new_version")
async def test_a_migration_waits_for_a_long_transaction_without_stopping_the_traffic(
    database_url: str, tries: list[float]
) -> None:
    noted: list[str] = []
    async with (
        await psycopg.AsyncConnection.connect(database_url, application_name="a report") as report,
        await psycopg.AsyncConnection.connect(
            database_url, autocommit=True, options="-c statement_timeout=1000"
        ) as service,
    ):
        await report.execute("select count(*) from headrace_core.queues")
        migration = asyncio.create_task(migrate(database_url, note=noted.append))

        async def serves_over_several_tries() -> bool:
            # A statement that waits behind the migration for more than 1 s fails.
            await service.execute("select count(*) from headrace_core.queues")
            return len(tries) > 5

        await eventually(serves_over_several_tries, within=20)
        assert not migration.done()
        await report.rollback()
        assert await migration == [NEW]
    assert len(noted) == 1
    assert "(postgres, a report) has a transaction open since" in noted[0]


@pytest.mark.usefixtures("_new_version")
async def test_a_lock_that_does_not_become_free_is_said_with_its_holder_and_changes_nothing(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, application_name="a report") as report:
        await report.execute("select count(*) from headrace_core.queues")
        with pytest.raises(RuntimeError, match=r"within 0\.5 s, and nothing was changed; process \d+ \(postgres, a re"):
            await migrate(database_url, patience=0.5)
    assert await missing_versions(database_url) == [NEW]


async def test_a_second_migration_waits_for_the_first_and_finds_nothing_to_do(empty_database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database_url) as first:
        await first.execute("select pg_advisory_xact_lock(%s)", (module._LOCK,))
        second = asyncio.create_task(migrate(empty_database_url))

        async def waits() -> bool:
            cursor = await first.execute("select 1 from pg_locks where locktype = 'advisory' and not granted")
            return await cursor.fetchone() is not None

        await eventually(waits, within=10)
        await first.execute(module._LEDGER.encode())
        for version, sql in available().items():
            await first.execute(sql.encode())
            await first.execute("insert into headrace_core.migrations (version) values (%s)", (version,))
        assert not second.done()
        await first.commit()
        assert await second == []


LATER = "9998_for_afterwards"


@pytest.fixture
def _with_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that brings one migration for after its deploy, and another for before it."""
    versions = available() | {
        LATER: "-- Label: after deploy.\ncomment on table headrace_core.queues is 'no longer as it was'",
        NEW: "-- New. Label: before deploy.\nalter table headrace_core.queues add extra text",
    }
    monkeypatch.setattr(module, "available", lambda: versions)


@pytest.mark.usefixtures("_with_a_later_one")
async def test_what_is_labelled_after_deploy_waits_until_it_is_asked_for_and_nobody_waits_for_it(
    database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await migrate(database_url) == [NEW]
    assert await missing_versions(database_url) == []
    assert await missing_versions(database_url, after_deploy=True) == [LATER]
    await asyncio.to_thread(db.verify, database_url)
    assert NEW in capfd.readouterr().out
    await asyncio.to_thread(db.migrate, database_url)
    assert f"left for headrace db migrate --after-deploy: {LATER}" in capfd.readouterr().out
    await asyncio.to_thread(db.migrate, database_url, after_deploy=True)
    assert capfd.readouterr().out == f"applied {LATER}\n"
    assert await missing_versions(database_url, after_deploy=True) == []
