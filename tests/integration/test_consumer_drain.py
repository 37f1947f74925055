"""SIGTERM, whatever the handlers do: each unit is handed back at once, and the process exits in time (G9)."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_core.stack.logins import as_service
from headrace_core.tasks.model import TaskRecord
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.nats_users import CREATOR, as_user
from tests.fixtures.waiting import eventually
from tests.handlers import stubborn

STUBBORN = stubborn.__name__
TOML = 'queues = [{name = "default", ack_wait = "30s", backoff = {initial = "20ms"}}]\n'
# Far above the seconds that handlers have: a hand-back that waited for its end would be seen.
GRACE = "30"
RESISTING = ["swallows-cancellation", "blocks-its-thread", "blocks-another-thread", "blocks-its-process"]


@asynccontextmanager
async def process(
    database_url: str, nats_url: str, folder: Path, **changes: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    config = folder / "process.toml"
    config.write_text(TOML)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | {
        "HEADRACE_DATABASE_URL": as_service(database_url, "consumer"),
        "HEADRACE_NATS_URL": as_user(nats_url, CREATOR),
        "HEADRACE_HANDLERS": STUBBORN,
        "HEADRACE_CONFIG": str(config),
        "HEADRACE_CREATE_QUEUES": "true",
        "HEADRACE_GRACE_SECONDS": GRACE,
        "HEADRACE_FINISH_SECONDS": "0.5",
        "HEADRACE_READY_FILE": str(folder / "ready.json"),
        **changes,
    }
    with (folder / "consumer.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "consumer", env=environ, stdout=log, stderr=log
        )
    try:
        await eventually((folder / "ready.json").exists, within=30, what="the ready file")
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def _handed_back(rig: ConsumerRig, task: TaskRecord) -> None:
    row = await rig.row(task.id)
    assert (row["state"], row["reason"], row["holder"]) == ("PENDING", "INTERRUPTED", None)
    assert (row["failures"], row["crashes"], row["interruptions"]) == (0, 0, 1)


@pytest.fixture
def release() -> Iterator[None]:
    """What resists in this process ends with the test."""
    stubborn.RELEASE.clear()
    yield
    stubborn.RELEASE.set()


@pytest.mark.usefixtures("release")
async def test_what_resists_is_handed_back_long_before_the_grace_period_ends(rig: ConsumerRig) -> None:
    consumer = await rig.consumer(handlers=STUBBORN, toml=TOML, grace_seconds=GRACE, finish_seconds="0.3")
    kinds = ["swallows-cancellation", "blocks-its-thread", "blocks-its-process"]
    tasks = [await rig.submit(kind) for kind in kinds]
    for task in tasks:
        await rig.has_begun(task)
    began = time.monotonic()
    await consumer.drain()
    assert time.monotonic() - began < 10
    for task in tasks:
        await _handed_back(rig, task)
    stubborn.RELEASE.set()


async def test_a_handler_that_stores_its_checkpoint_when_asked_is_handed_back_with_it_at_once(rig: ConsumerRig) -> None:
    consumer = await rig.consumer(handlers=STUBBORN, toml=TOML, grace_seconds="60", finish_seconds="30")
    goes_on, returns = await rig.submit("checkpoints-when-asked"), await rig.submit("checkpoints-and-returns")
    await rig.has_begun(goes_on)
    await rig.has_begun(returns)
    began = time.monotonic()
    await consumer.drain()
    assert time.monotonic() - began < 15, "the handler's time to finish was waited for"
    await _handed_back(rig, goes_on)
    assert await rig.result(returns) == 1, "what returns after its checkpoint has finished"
    await rig.consumer(handlers=STUBBORN, toml=TOML)
    assert await rig.result(goes_on) == "asked"


async def test_what_has_not_begun_goes_back_without_waiting_for_what_has(rig: ConsumerRig) -> None:
    consumer = await rig.consumer(handlers=STUBBORN, toml=TOML, grace_seconds="60", finish_seconds="30")
    tasks = [await rig.submit("blocks-its-process") for _ in range(os.cpu_count() or 1)]
    for task in tasks:
        await rig.has_begun(task)
    waiting = await rig.submit("blocks-its-process")

    async def claimed() -> bool:
        return bool((await rig.row(waiting.id))["state"] == "PROCESSING")

    await eventually(claimed, what="the claim of what has no process yet")
    draining = asyncio.create_task(consumer.drain())

    async def back() -> bool:
        return bool((await rig.row(waiting.id))["state"] == "PENDING")

    await eventually(back, within=10, what="its hand-back")
    assert not draining.done()
    draining.cancel()
    await asyncio.wait([draining])


async def test_a_process_full_of_resisting_handlers_hands_all_back_and_exits_clean(
    rig: ConsumerRig, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with process(database_url, nats_url, tmp_path) as child:
        tasks = [await rig.submit(kind) for kind in RESISTING]
        for task in tasks:
            await rig.has_begun(task)
        await rig.consumer(handlers=STUBBORN, toml=TOML)
        child.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert [await rig.result(task, within=15) for task in tasks] == [2, 2, 2, 2]
        async with asyncio.timeout(20):
            assert await child.wait() == 0
        assert time.monotonic() - asked < 25
    rows = [await rig.row(task.id) for task in tasks]
    assert [(row["failures"], row["crashes"], row["interruptions"], row["suspect"]) for row in rows] == [
        (0, 0, 1, False)
    ] * 4


@pytest.mark.usefixtures("relay")
async def test_a_handler_that_blocks_the_loop_delays_neither_the_hand_back_nor_the_exit(
    rig: ConsumerRig, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with process(database_url, nats_url, tmp_path) as child:
        blocking, beside = await rig.submit("blocks-its-loop"), await rig.submit("blocks-another-thread")
        await rig.has_begun(blocking)
        await rig.has_begun(beside)
        await rig.consumer(handlers=STUBBORN, toml=TOML)
        await eventually(lambda: _is_silent(tmp_path), within=20, what="the blocked loop")
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await child.wait() == 0
        left = time.monotonic()
        assert [await rig.result(blocking), await rig.result(beside)] == [2, 2]
        assert time.monotonic() - left < 4, "the next consumer had to look for them in Postgres"
    assert "a handler blocks the event loop" in (tmp_path / "consumer.log").read_text()
    row = await rig.row(blocking.id)
    assert (row["failures"], row["crashes"], row["interruptions"], row["suspect"]) == (0, 0, 1, False)


async def _is_silent(folder: Path) -> bool:
    """Whether the ops server, which shares the loop, has stopped answering."""
    ops = json.loads((folder / "ready.json").read_text())["ops"].removeprefix("http://").rstrip("/")
    host, port = ops.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(0.5):
            return not await reader.read(1)
    except TimeoutError:
        return True
    finally:
        writer.close()
        await writer.wait_closed()
