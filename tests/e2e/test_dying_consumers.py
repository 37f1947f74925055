"""A handler that kills its whole consumer is found out and put away; its neighbours only lose time (G4).

On stacks of their own: these consumers die over and over, and their leases are long, so that only the keeper's report
can be what brings the work back.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace import Client
from headrace.v1 import error_pb2, task_pb2
from headrace_core.stack.dev import LocalStack
from tests.fixtures.servers import handlers_path
from tests.fixtures.waiting import eventually

# The stack starts a new consumer in a dead one's place: it belongs to the stack and ends with it.
pytestmark = [pytest.mark.leaks_ok, pytest.mark.timeout(120)]
TOML = """
[[queues]]
name = "default"
ack_wait = "60s"
backoff = { initial = "100ms", maximum = "1s" }
"""
NEIGHBOURS = 50
LEASE_SECONDS = 120


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[LocalStack]:
    config = tmp_path / "headrace.toml"
    config.write_text(TOML, encoding="utf-8")
    environment = {"PYTHONPATH": handlers_path(), "HEADRACE_CONFIG": str(config)}
    folder = tmp_path / "data"
    async with LocalStack(folder, consumers=1, handlers=["stubborn"], environment=environment) as running:
        yield running


@pytest.fixture
async def client(stack: LocalStack) -> AsyncIterator[Client]:
    async with Client(stack.endpoints.producer, stack.endpoints.status) as connected:
        yield connected


async def test_a_handler_that_kills_its_consumer_is_put_away_and_fifty_neighbours_complete(client: Client) -> None:
    began = time.monotonic()
    neighbours = await client.submit_many([client.request("neighbour", {}) for _ in range(NEIGHBOURS)])
    killer = await client.submit("kills-its-process", {})
    ended = await client.wait(killer.id, timeout=60)
    assert (ended.state, ended.reason) == (task_pb2.TASK_STATE_FAILED, error_pb2.REASON_CRASHED)
    assert (ended.budgets.failures, ended.budgets.crashes) == (0, 3)
    assert ended.error.message == "killed by SIGKILL (signal 9); last progress 0.40 'loading page 7'"
    results = await asyncio.gather(*(client.result(task.id, timeout=60) for task in neighbours))
    assert time.monotonic() - began < LEASE_SECONDS, "a lease was waited for"
    budgets = [(await client.get(task.id)).budgets for task in neighbours]
    assert {(item.failures, item.crashes) for item in budgets} == {(0, 0)}
    assert max(results) > 1, "the neighbours were not running when the consumer died"
    letter = await client.dead_letters.get(killer.id)
    assert (letter.reason, letter.budgets.crashes) == (error_pb2.REASON_CRASHED, 3)
    assert [json.loads(letter.payload_json)] == [{}]


async def test_a_consumer_that_is_killed_is_replaced_without_waiting_for_its_lease(
    client: Client, stack: LocalStack
) -> None:
    task = await client.submit("neighbour", {"seconds": 5.0})
    consumer = stack.services["consumer-1"]

    async def running() -> bool:
        return (await client.get(task.id)).state == task_pb2.TASK_STATE_PROCESSING

    await eventually(running, within=20)
    killed = time.monotonic()
    assert consumer.pid is not None
    os.kill(consumer.pid, signal.SIGKILL)
    assert await client.result(task.id, timeout=60) == 2
    assert time.monotonic() - killed < LEASE_SECONDS / 2
    budgets = (await client.get(task.id)).budgets
    assert (budgets.failures, budgets.crashes, budgets.interruptions) == (0, 0, 1)
