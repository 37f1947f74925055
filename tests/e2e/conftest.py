"""One local stack for all end-to-end tests: real services, as `headrace dev` runs them."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from headrace import Client
from headrace_core.db.pool import Database
from headrace_core.stack.dev import Endpoints
from headrace_core.stack.testing import SteeredStack, start
from tests.fixtures.servers import handlers_path

QUEUES = """
[[queues]]
name = "default"
backoff = { initial = "100ms", maximum = "1s" }
[[queues]]
name = "batches"
max_batch_size = 8
max_batch_timeout = "1s"
"""


@pytest.fixture(scope="session")
def session_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SteeredStack]:
    folder = tmp_path_factory.mktemp("stack")
    config = folder / "headrace.toml"
    config.write_text(QUEUES, encoding="utf-8")
    environment = {"PYTHONPATH": handlers_path(), "HEADRACE_CONFIG": str(config)}
    with start(
        folder / "data", consumers=2, handlers=["workshop"], environment=environment, working_folder=folder
    ) as stack:
        yield stack


@pytest.fixture
def running_stack(session_stack: SteeredStack) -> Iterator[SteeredStack]:
    """The session's stack; what a test broke is put right after it."""
    yield session_stack
    session_stack.run(session_stack.heal())


@pytest.fixture
def endpoints(running_stack: SteeredStack) -> Endpoints:
    return running_stack.stack.endpoints


@pytest.fixture
async def client(endpoints: Endpoints) -> AsyncIterator[Client]:
    async with Client(producer=endpoints.producer, status=endpoints.status) as connected:
        yield connected


@pytest.fixture
async def db(endpoints: Endpoints) -> AsyncIterator[Database]:
    database = Database(endpoints.database_url)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / f"ledger-{uuid.uuid4().hex}"
    path.touch()
    return path


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A file that handlers wait for; it does not exist yet."""
    return tmp_path / "release"
