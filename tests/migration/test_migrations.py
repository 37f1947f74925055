"""Migrations: idempotent, safe from many processes, and the dump for reviews says what they make."""

import asyncio

import psycopg
import pytest

from headrace_core.db.migrate import available, migrate, missing_versions
from headrace_core.stack.schema import SCHEMA_FILE, dump


async def test_the_dump_is_what_the_migrations_make(database_url: str) -> None:
    told = SCHEMA_FILE.read_text(encoding="utf-8")
    assert await dump(database_url) == told, "run `python -m headrace_core.stack.schema` and review the change"


async def test_many_may_migrate_at_once_and_each_version_is_applied_once(empty_database_url: str) -> None:
    assert await missing_versions(empty_database_url) == list(available())
    applied = await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))
    assert sorted(version for versions in applied for version in versions) == sorted(available())
    assert await missing_versions(empty_database_url) == []
    assert await migrate(empty_database_url) == []


@pytest.mark.parametrize("view", ["tasks", "shards", "attempts", "dead_letters"])
async def test_the_public_views_can_be_read(database_url: str, view: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        found = await connection.execute(f"select count(*) from headrace.{view}".encode())
        assert await found.fetchone() == (0,)
