"""The knobs of `headrace.testing.Stack`: each breaks what it says, and Headrace holds."""

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headrace import Client
from headrace_core.stack.testing import SteeredStack
from tests.e2e.running import lines_of
from tests.fixtures.nats_wire import request
from tests.fixtures.waiting import eventually

# What the stack starts in place of a killed part belongs to the stack and ends with it.
pytestmark = [pytest.mark.leaks_ok, pytest.mark.timeout(120)]


async def refuses(url: str) -> bool:
    """Whether it does not: a stopped process may still be in its last step."""
    return not await can_connect(url)


async def can_connect(url: str) -> bool:
    """Whether the nats-server greets."""
    try:
        reader, writer = await asyncio.open_connection(*url.removeprefix("nats://").split(":"))
    except OSError:
        return False
    try:
        async with asyncio.timeout(1.0):
            return (await reader.readline()).startswith(b"INFO")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


async def answers(url: str) -> bool:
    """Whether Postgres answers."""
    try:
        async with asyncio.timeout(3.0):
            async with await psycopg.AsyncConnection.connect(url, connect_timeout=2) as connection:
                await connection.execute("select 1")
    except (psycopg.OperationalError, TimeoutError):
        return False
    return True


async def test_a_lost_broker_is_away_until_it_is_restored(client: Client, running_stack: SteeredStack) -> None:
    await running_stack.lose_broker()
    assert not await can_connect(running_stack.nats_url)
    task = await client.submit("add", {"a": 1, "b": 2})
    assert await client.result(task.id, timeout=60) == {"sum": 3}
    await running_stack.restore_broker()
    assert await can_connect(running_stack.nats_url)


async def test_a_frozen_broker_says_nothing_and_goes_on(client: Client, running_stack: SteeredStack) -> None:
    await running_stack.freeze_broker()
    await eventually(lambda: refuses(running_stack.nats_url), what="the broker to say nothing")
    await running_stack.restore_broker()
    assert await can_connect(running_stack.nats_url)
    task = await client.submit("add", {"a": 1, "b": 2})
    assert await client.result(task.id, timeout=60) == {"sum": 3}


async def test_a_lost_database_keeps_what_was_committed(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    await running_stack.lose_database()
    assert not await answers(running_stack.database_url)
    await running_stack.restore_database()
    release.touch()
    assert (await client.result(task.id, timeout=60))["epoch"] >= 1
    assert (await client.get(task.id)).budgets.failures == 0


async def test_a_frozen_database_answers_nobody_until_it_goes_on(client: Client, running_stack: SteeredStack) -> None:
    await running_stack.freeze_database()
    assert not await answers(running_stack.database_url)
    await running_stack.restore_database()
    await eventually(lambda: answers(running_stack.database_url), within=15)


async def test_a_frozen_consumer_loses_its_task_and_can_write_nothing_later(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    frozen = await running_stack.freeze_consumer(task.id)
    assert (await client.get(task.id)).worker.endswith(f"/{running_stack.stack.services[frozen].pid}")
    await eventually(lambda: len(lines_of(ledger)) == 2, within=30, what="the takeover")
    release.touch()
    assert (await client.result(task.id, timeout=30))["epoch"] == 2
    await running_stack.start_consumer(frozen)
    again = await client.get(task.id, full=True)
    assert again.result_json == b'{"epoch":2}'


async def test_what_is_delivered_again_runs_once(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    before = await deliveries(running_stack)
    await running_stack.deliver_again(task.id)  # while it runs
    await eventually(lambda: has_delivered(running_stack, before + 1), what="the duplicate delivery")
    release.touch()
    await client.result(task.id, timeout=30)
    await running_stack.deliver_again(task.id)  # and when it has ended
    await eventually(lambda: has_delivered(running_stack, before + 2), what="the late delivery")
    await running_stack.until_acknowledged()
    assert await messages(running_stack) == 0
    assert lines_of(ledger) == ["start 1"]
    assert (await client.get(task.id)).budgets.interruptions == 0


async def test_a_crash_after_settling_brings_the_message_again_and_runs_nothing(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    release.touch()
    before = running_stack.lost_acknowledgements
    pids = consumer_pids(running_stack)
    async with running_stack.crash_after_settle():
        task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
        assert await client.result(task.id, timeout=30) == {"epoch": 1}
        await eventually(lambda: running_stack.lost_acknowledgements > before, what="the lost acknowledgement")
        assert await messages(running_stack) >= 1
    assert not pids & consumer_pids(running_stack)
    await running_stack.until_acknowledged()
    assert lines_of(ledger) == ["start 1"]
    assert (await client.get(task.id)).budgets.crashes == 0


def consumer_pids(stack: SteeredStack) -> set[int | None]:
    return {stack.stack.services[name].pid for name in stack.consumers}


async def ask(stack: SteeredStack, what: str) -> dict[str, Any]:
    """An answer of the JetStream API."""
    answer: dict[str, Any] = json.loads(await request(stack.nats_url, f"$JS.API.{what}", "{}"))
    return answer


async def messages(stack: SteeredStack) -> int:
    """Messages in the stream of tasks."""
    return int((await ask(stack, "STREAM.INFO.HEADRACE_TASKS"))["state"]["messages"])


async def deliveries(stack: SteeredStack) -> int:
    """Deliveries of tasks so far."""
    consumers = (await ask(stack, "CONSUMER.LIST.HEADRACE_TASKS"))["consumers"]
    return sum(consumer["delivered"]["consumer_seq"] for consumer in consumers)


async def has_delivered(stack: SteeredStack, number: int) -> bool:
    return await deliveries(stack) >= number


async def test_the_knobs_say_what_they_cannot_do(running_stack: SteeredStack) -> None:
    unknown = "0190d1a0-0000-7000-8000-000000000000"
    with pytest.raises(LookupError, match="no consumer runs the task"):
        await running_stack.kill_consumer(unknown)
    with pytest.raises(LookupError, match="there is no task"):
        await running_stack.deliver_again(unknown)
    with pytest.raises(LookupError, match="neither a task's id nor a consumer's name"):
        await running_stack.kill_consumer("consumer-99")


async def test_healing_puts_everything_right(client: Client, running_stack: SteeredStack) -> None:
    await running_stack.lose_broker()
    assert await running_stack.kill_consumer() == "consumer-1"
    assert await running_stack.stop_consumer("consumer-2") == "consumer-2"
    await running_stack.freeze_database()
    await running_stack.heal()
    assert all(running_stack.stack.services[name].running for name in running_stack.consumers)
    task = await client.submit("add", {"a": 1, "b": 2})
    assert await client.result(task.id, timeout=60) == {"sum": 3}


async def test_a_broker_that_lost_its_data_costs_no_task(client: Client, running_stack: SteeredStack) -> None:
    before = await ask(running_stack, "STREAM.INFO.HEADRACE_TASKS")
    await running_stack.lose_broker(with_data=True)
    task = await client.submit("add", {"a": 1, "b": 2})
    await running_stack.restore_broker()
    assert await client.result(task.id, timeout=60) == {"sum": 3}

    async def made_anew() -> bool:
        after = await ask(running_stack, "STREAM.INFO.HEADRACE_TASKS")
        return "created" in after and bool(after["created"] != before["created"])

    await eventually(made_anew, within=30)


def test_a_test_that_is_not_async_turns_them_by_run(running_stack: SteeredStack) -> None:
    name = running_stack.run(running_stack.kill_consumer("consumer-2"))
    assert name == "consumer-2"
    running_stack.run(running_stack.start_consumer(name))
    assert running_stack.stack.services[name].running
