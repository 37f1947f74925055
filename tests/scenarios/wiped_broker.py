"""nats-server is killed and its data deleted while thousands of tasks are in flight: all of them end as they should.

`python -m tests.scenarios.wiped_broker [--tasks 5000] [--away 5]`, about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from headrace import Client
from headrace_core.stack.dev import LocalStack
from tests.fixtures.servers import handlers_path

LIMIT_SECONDS = 300.0
BATCH = 500
WATCHES = 200


def wanted(number: int) -> tuple[str, dict[str, Any], Any]:
    """Kind, payload and result of the n-th task: most take a second, some are sharded."""
    if number % 20 == 0:
        return "squares", {"count": 5}, {"sum": 30, "parts": 5}
    if number % 2:
        return "add", {"a": number, "b": 1}, {"sum": number + 1}
    return "counts", {"steps": 2, "pause": 0.5}, {"steps": 2}


async def submit_all(client: Client, count: int) -> dict[str, Any]:
    """Submit `count` tasks; the result that each must have, by id."""
    expected: dict[str, Any] = {}
    for start in range(0, count, BATCH):
        chosen = [wanted(number) for number in range(start, min(start + BATCH, count))]
        answers = await client.submit_many([client.request(kind, payload) for kind, payload, _ in chosen])
        expected |= {answer.id: result for answer, (_, _, result) in zip(answers, chosen, strict=True)}
    return expected


async def wipe(stack: LocalStack, away: float) -> None:
    """Kill nats-server, delete everything it had, start it again after `away` seconds."""
    await stack.kill_part("nats")
    shutil.rmtree(stack.data_dir / "nats")
    await asyncio.sleep(away)
    await stack.start_part("nats")


async def outcome(client: Client, task_id: str, expected: Any) -> str:
    """What became of a task, in a word."""
    try:
        result = await client.result(task_id, timeout=LIMIT_SECONDS)
    except Exception as error:  # noqa: BLE001 - every end but a result is counted by its name
        return type(error).__name__
    return "as it should" if result == expected else "WRONG RESULT"


async def run(count: int, away: float, folder: Path) -> bool:
    async with (
        LocalStack(folder, handlers=["workshop"], environment={"PYTHONPATH": handlers_path()}) as stack,
        Client(stack.endpoints.producer, stack.endpoints.status) as client,
    ):
        began = time.monotonic()
        expected = await submit_all(client, count)
        print(f"{count} tasks submitted in {time.monotonic() - began:.1f} s; the broker loses everything now")
        wiping = asyncio.create_task(wipe(stack, away), name="wipe")
        ends = await outcomes(client, expected)
        await wiping
        print(f"all ended {time.monotonic() - began:.1f} s after the first submit: {dict(ends)}")
    return ends == Counter({"as it should": count})


async def outcomes(client: Client, expected: dict[str, Any]) -> Counter[str]:
    """What became of all of them, a bounded number of watches at a time."""
    gate = asyncio.Semaphore(WATCHES)

    async def one(task_id: str, result: Any) -> str:
        async with gate:
            return await outcome(client, task_id, result)

    return Counter(await asyncio.gather(*(one(task_id, result) for task_id, result in expected.items())))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--away", type=float, default=5.0, help="seconds until nats-server is back")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = asyncio.run(run(arguments.tasks, arguments.away, Path(folder) / "stack"))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
