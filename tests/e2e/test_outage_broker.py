"""nats-server gone under the real services (G7): submits, runs and watches go on, everybody can see it, and it ends."""

import asyncio
import json
import urllib.error
import urllib.request

import pytest

from headrace import Client
from headrace.v1 import event_pb2, status_pb2
from headrace_core.stack.testing import SteeredStack
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.leaks_ok

TASKS = 10


async def fetch(url: str) -> str:
    """The body of a page, whatever its status."""

    def read() -> bytes:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            return error.read()

    return (await asyncio.to_thread(read)).decode()


async def http_mode(stack: SteeredStack) -> str:
    return str(json.loads(await fetch(f"{stack.http.rstrip('/')}/api/async-status"))["mode"])


async def metric_modes(stack: SteeredStack) -> set[str]:
    """The mode that each consumer's metrics show."""
    modes: set[str] = set()
    for name in stack.consumers:
        page = await fetch(f"http://{stack.stack.services[name].addresses.ops}/metrics")
        lines = [line for line in page.splitlines() if line.startswith("headrace_mode{") and line.endswith(" 1.0")]
        modes |= {line.split('"')[1] for line in lines}
    return modes


async def all_in(stack: SteeredStack, client: Client, mode: str, dispatch: status_pb2.DispatchMode.ValueType) -> bool:
    seen = (await metric_modes(stack), await http_mode(stack), (await client.system_status()).mode)
    return seen == ({mode}, mode, dispatch)


async def watched(client: Client, task_id: str) -> list[event_pb2.TaskEvent]:
    return [event async for event in client.watch(task_id, after_sequence=0)]


async def test_without_the_broker_work_is_accepted_done_and_watched_and_the_way_back_is_found(
    client: Client, running_stack: SteeredStack
) -> None:
    payload = {"steps": 5, "pause": 0.02}
    before = await client.submit("counts", payload)
    await client.result(before.id, timeout=30)
    await running_stack.lose_broker()

    tasks = [await client.submit("counts", payload) for _ in range(TASKS)]
    async with asyncio.timeout(60):
        streams = await asyncio.gather(*(watched(client, task.id) for task in tasks))
    for stream in streams:
        assert [event.sequence for event in stream] == list(range(1, stream[-1].sequence + 1))
        assert stream[-1].state_change.terminal
        assert not any(event.HasField("gap") for event in stream)
    fallback = status_pb2.DISPATCH_MODE_FALLBACK
    await eventually(lambda: all_in(running_stack, client, "fallback", fallback), within=20, what="fallback everywhere")
    assert "mode.changed" in running_stack.log_file.read_text(encoding="utf-8")

    await running_stack.restore_broker()
    broker = status_pb2.DISPATCH_MODE_BROKER
    await eventually(lambda: all_in(running_stack, client, "broker", broker), within=40, what="the broker everywhere")
    after = await client.submit("counts", payload)
    assert await client.result(after.id, timeout=30) == {"steps": 5}
    for task in (before, *tasks, after):
        found = await client.get(task.id)
        assert (found.attempts, found.budgets.failures, found.budgets.interruptions) == (1, 0, 0)
