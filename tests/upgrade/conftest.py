"""An old and a new installation on one database and one broker."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_core.db.pool import Database
from tests.fixtures.fleet import Fleet, fleet
from tests.upgrade import older

MIGRATE = "import asyncio, sys; from headrace_core.db.migrate import migrate; asyncio.run(migrate(sys.argv[1]))"
MIGRATE_SECONDS = 30


@pytest.fixture(scope="session")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout of the release before this one."""
    return older.lay_out(tmp_path_factory.mktemp("older"))


@pytest.fixture
async def old_schema_url(empty_database_url: str, old_code: Path) -> str:
    """A database that the old code has migrated."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MIGRATE, empty_database_url,
        env=os.environ | {"PYTHONPATH": str(old_code)}, cwd=old_code,
    )  # fmt: skip
    async with asyncio.timeout(MIGRATE_SECONDS):
        assert await process.wait() == 0
    return empty_database_url


@pytest.fixture
async def both(database_url: str, nats_url: str, tmp_path: Path, old_code: Path) -> AsyncIterator[Fleet]:
    """Old and new services on the new schema, none of them started."""
    async with fleet(database_url, nats_url, tmp_path) as services:
        add_both(services, old_code)
        yield services
        assert_old_is_old(services, old_code)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """The test's own view of the new schema."""
    async with _opened(database_url) as database:
        yield database


@pytest.fixture
async def old_db(old_schema_url: str) -> AsyncIterator[Database]:
    """The test's own view of the database that began with the old schema."""
    async with _opened(old_schema_url) as database:
        yield database


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, max_size=2)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def add_both(services: Fleet, old_code: Path) -> None:
    """`producer-old`, `producer-new` and so on."""
    for module in ("producer", "consumer", "status"):
        services.add(f"{module}-old", code=old_code)
        services.add(f"{module}-new")


def assert_old_is_old(services: Fleet, old_code: Path) -> None:
    """The processes that were to run the old code did."""
    for name, service in services.services.items():
        if name.endswith("-old") and service.pid is not None:
            assert older.imported_by(old_code, service.pid) == {old_code}
