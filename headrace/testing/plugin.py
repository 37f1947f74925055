"""The pytest plugin: the whole local stack, and clients of it, as fixtures.

Installed with headrace; imports nothing of it until a fixture is asked for. The stack itself is found by entry point:
it belongs to the server extra.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.sync import SyncClient
    from headrace.testing.stack import Stack

GROUP = "headrace.testing"
INSTALL = "pip install 'headrace[server,stack]'"
OURS = ("headrace", "headrace_core", "producer", "consumer", "status")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the settings of the stack."""
    parser.addini("headrace_handlers", "modules whose handlers the consumers of headrace_stack run", "args", [])
    parser.addini("headrace_consumers", "how many consumers headrace_stack has", "string", "2")


@pytest.fixture(scope="session")
def headrace_handlers(pytestconfig: pytest.Config) -> list[str]:
    """The modules whose handlers the consumers run. Override it, or set `headrace_handlers` in pytest's settings."""
    return list(pytestconfig.getini("headrace_handlers"))


@pytest.fixture(scope="session")
def headrace_environment() -> Mapping[str, str]:
    """Environment variables for every service, besides the inherited ones. Override it."""
    return {}


@pytest.fixture(scope="session")
def headrace_session_stack(
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    headrace_handlers: list[str],
    headrace_environment: Mapping[str, str],
) -> Iterator[Stack]:
    """The stack itself, for fixtures of a wider scope. Whoever breaks it puts it right: tests use headrace_stack.

    What the tests can import the consumers can; headrace.toml is looked for in pytest's root folder.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with _launcher()(
        tmp_path_factory.mktemp("headrace") / "stack",
        handlers=headrace_handlers,
        consumers=int(pytestconfig.getini("headrace_consumers")),
        environment={"PYTHONPATH": path, **headrace_environment},
        working_folder=pytestconfig.rootpath,
    ) as stack:
        yield stack


@pytest.fixture
def headrace_stack(headrace_session_stack: Stack) -> Iterator[Stack]:
    """The session's local stack (`headrace.testing.Stack`); what a test broke is put right after it."""
    yield headrace_session_stack
    headrace_session_stack.run(headrace_session_stack.heal())


@pytest.fixture
def headrace_sync_client(headrace_stack: Stack) -> Iterator[SyncClient]:
    """A blocking client of the stack."""
    from headrace.sync import SyncClient  # noqa: PLC0415 - only who asks for it pays for gRPC

    with SyncClient(headrace_stack.producer, headrace_stack.status, tls=False) as client:
        yield client


async def _connected(headrace_stack: Stack) -> AsyncIterator[Client]:
    """An async client of the stack."""
    from headrace.client import Client  # noqa: PLC0415 - only who asks for it pays for gRPC

    async with Client(headrace_stack.producer, headrace_stack.status, tls=False) as client:
        yield client


def _refused() -> None:
    """Needs pytest-asyncio."""
    pytest.fail("headrace_client needs pytest-asyncio; without it use headrace_sync_client", pytrace=False)


def _client_fixture() -> Any:
    """Made by pytest-asyncio, so that it works in its strict mode as well."""
    try:
        import pytest_asyncio  # noqa: PLC0415 - is not a dependency of ours
    except ModuleNotFoundError:
        return pytest.fixture(name="headrace_client")(_refused)
    return pytest_asyncio.fixture(name="headrace_client")(_connected)


headrace_client = _client_fixture()


def _launcher() -> Any:
    """What starts a stack, or one clear sentence where it is not installed."""
    for point in entry_points(group=GROUP, name="stack"):
        try:
            return point.load()
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if not missing or missing in OURS[:2]:
                raise  # a defect of ours, not an extra that was left out
            pytest.fail(f"headrace_stack needs the server extra ({missing} is missing): {INSTALL}", pytrace=False)
    pytest.fail(f"headrace_stack needs the server extra: {INSTALL}", pytrace=False)
