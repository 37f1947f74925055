"""Every consumer is stopped and started anew, again and again, under long tasks: none is charged, little is repeated.

`python -m tests.scenarios.rollouts [--tasks 200] [--seconds 30] [--rollouts 10]`, about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace import Client
from headrace.v1 import task_pb2
from headrace_core.stack.dev import LocalStack
from tests.fixtures.servers import handlers_path

CONSUMERS = 2
EVERY_SECONDS = 10.0
LIMIT_SECONDS = 600.0
REPEATED_LIMIT_SECONDS = 2.0
STEP_SECONDS = 0.1
WATCHES = 100


@dataclass(frozen=True)
class Rollout:
    """One roll-out: how long the slowest consumer took to stop, and the exit codes."""

    seconds: float
    codes: tuple[int | None, ...]


def config(tasks: int, seconds: float, rollouts: int) -> str:
    """So many places that the work lasts as long as the roll-outs do."""
    places = math.ceil(tasks * seconds / (rollouts * EVERY_SECONDS) / CONSUMERS)
    return f'[[queues]]\nname = "default"\nmax_concurrency = {max(places, 1)}\n'


async def roll_out(stack: LocalStack) -> Rollout:
    """SIGTERM and a new start, of all consumers at once."""
    names = [name for name, service in stack.services.items() if service.module == "consumer"]

    async def renew(name: str) -> tuple[float, int | None]:
        began = time.monotonic()
        await stack.stop_part(name)
        took, code = time.monotonic() - began, await stack.services[name].stop()
        await stack.start_part(name)
        return took, code

    stops = await asyncio.gather(*(renew(name) for name in names))
    return Rollout(max(took for took, _ in stops), tuple(code for _, code in stops))


async def roll_out_all(stack: LocalStack, rollouts: int) -> list[Rollout]:
    done: list[Rollout] = []
    for _ in range(rollouts):
        await asyncio.sleep(EVERY_SECONDS)
        done.append(await roll_out(stack))
        print(f"  roll-out {len(done)}: stopped within {done[-1].seconds:.1f} s, exit codes {done[-1].codes}")
    return done


def repeated(ledger: Path) -> list[float]:
    """Seconds of work that each hand-back cost: how far an attempt had come, less where the next one began.

    Every attempt notes how far it came: one that did not was killed, which no roll-out does.
    """
    reached: dict[tuple[str, int], int] = {}
    began: dict[tuple[str, int], int] = {}
    for line in ledger.read_text(encoding="utf-8").splitlines():
        task, attempt, what, step = line.split()
        (began if what == "from" else reached)[task, int(attempt)] = int(step)
    attempts: dict[str, list[int]] = defaultdict(list)
    for name, number in began:
        attempts[name].append(number)
    return [
        (reached[task, before] - began[task, after]) * STEP_SECONDS
        for task, numbers in attempts.items()
        for before, after in zip(sorted(numbers), sorted(numbers)[1:], strict=False)
    ]


async def ended(client: Client, ids: list[str]) -> list[task_pb2.Task]:
    """The ended tasks, a bounded number of watches at a time."""
    gate = asyncio.Semaphore(WATCHES)

    async def one(task_id: str) -> task_pb2.Task:
        async with gate:
            return await client.wait(task_id, timeout=LIMIT_SECONDS)

    return list(await asyncio.gather(*(one(task_id) for task_id in ids)))


def judge(tasks: list[task_pb2.Task], rollouts: list[Rollout], costs: list[float]) -> bool:
    """Print the figures; whether they are as promised."""
    states = Counter(task_pb2.TaskState.Name(task.state) for task in tasks)
    charged = {
        name: sum(getattr(task.budgets, name) for task in tasks) for name in ("failures", "crashes", "interruptions")
    }
    worst = max(costs, default=0.0)
    codes = Counter(code for rollout in rollouts for code in rollout.codes)
    print(f"{len(tasks)} tasks: {dict(states)}; charged: {charged}")
    print(f"{len(costs)} hand-backs; repeated work of each: at most {worst:.1f} s, {_mean(costs):.2f} s on average")
    print(f"stops: at most {max(item.seconds for item in rollouts):.1f} s, exit codes {dict(codes)}")
    return (
        states == Counter({"TASK_STATE_COMPLETED": len(tasks)})
        and charged["failures"] == charged["crashes"] == 0
        and worst <= REPEATED_LIMIT_SECONDS
        and set(codes) == {0}
    )


def _mean(costs: list[float]) -> float:
    return sum(costs) / len(costs) if costs else 0.0


async def run(count: int, seconds: float, rollouts: int, folder: Path) -> bool:
    ledger, toml = folder / "ledger", folder / "headrace.toml"
    toml.write_text(config(count, seconds, rollouts), encoding="utf-8")
    environment = {"PYTHONPATH": handlers_path(), "HEADRACE_CONFIG": str(toml)}
    payload: dict[str, Any] = {"seconds": seconds, "ledger": str(ledger)}
    async with (
        LocalStack(folder / "stack", consumers=CONSUMERS, handlers=["long_work"], environment=environment) as stack,
        Client(stack.endpoints.producer, stack.endpoints.status) as client,
    ):
        began = time.monotonic()
        tasks = await client.submit_many([client.request("long-work", payload) for _ in range(count)])
        print(f"{count} tasks of {seconds:g} s submitted; {rollouts} roll-outs, one every {EVERY_SECONDS:g} s")
        done, ends = await asyncio.gather(roll_out_all(stack, rollouts), ended(client, [task.id for task in tasks]))
        print(f"all ended {time.monotonic() - began:.0f} s after the submit")
    return judge(ends, done, repeated(ledger))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rollouts", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        good = asyncio.run(run(arguments.tasks, arguments.seconds, arguments.rollouts, Path(folder)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
