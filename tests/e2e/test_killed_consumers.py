"""kill -9 of a consumer in mid-task: another one finishes it, and finished shards stay finished (G3, G10)."""

from pathlib import Path

import pytest

from headrace import Client
from headrace_core.stack.testing import SteeredStack
from tests.e2e.running import lines_of
from tests.fixtures.waiting import eventually

# The session's stack starts a new consumer in the killed one's place: it belongs to the stack and ends with it.
pytestmark = pytest.mark.leaks_ok


async def test_a_task_of_a_killed_consumer_is_finished_by_another(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    await running_stack.kill_consumer(task.id)
    await eventually(lambda: len(lines_of(ledger)) == 2, within=15, what="the second start")
    release.touch()
    assert (await client.result(task.id, timeout=30))["epoch"] == 2
    budgets = (await client.get(task.id)).budgets
    assert (budgets.failures, budgets.interruptions) == (0, 1)


async def test_finished_shards_of_a_killed_consumer_are_not_run_again(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    held = [3, 7]
    payload = {"count": 10, "ledger": str(ledger), "held": held, "release": str(release)}
    task = await client.submit("squares", payload)

    async def others_done() -> bool:
        return (await client.get(task.id)).progress.done_shards == 8

    await eventually(others_done, within=20)
    await running_stack.kill_consumer(task.id)
    release.touch()
    result = await client.result(task.id, timeout=40)
    assert result == {"sum": sum(n * n for n in range(10)), "parts": 10}
    starts = [line for line in lines_of(ledger) if line.startswith("shard")]
    repeated = {line for line in starts if starts.count(line) > 1}
    assert repeated <= {f"shard {index}" for index in held}
    assert lines_of(ledger).count("merge") == 1


async def test_a_drained_consumer_hands_its_task_over_and_charges_nothing(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    await running_stack.stop_consumer(task.id)
    await eventually(lambda: len(lines_of(ledger)) == 2, within=5, what="the second start")
    release.touch()
    await client.result(task.id, timeout=30)
    budgets = (await client.get(task.id)).budgets
    assert (budgets.failures, budgets.crashes, budgets.interruptions) == (0, 0, 1)
