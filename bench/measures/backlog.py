"""Does it stay as fast with 1,000,000 tasks waiting and 5,000,000 finished ones as it is when empty?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psycopg

from bench.draining import Drain, submit_and_drain
from bench.filling import fill, finished_since, published
from bench.measure import Figure, Samples, Scope, at_least, at_most, required
from bench.measures.memory import megabytes
from bench.processes import CpuWatch, cpu_per_task, pids_of
from bench.report import percentile
from bench.servers import product
from bench.worker import Worker, loaded
from headrace_core.stack.dev import LocalStack

WHAT = "with 1,000,000 waiting and 5,000,000 finished tasks: rates by those when empty, reads in ms (ten minutes)"
ON_DEMAND = True
READS = ("get_queue", "get_task", "list_tasks", "list_waiting", "system_status")
FIGURES = (
    Figure("submit_empty", "tasks/s"),
    Figure("submit", "tasks/s", per="submit_empty", target=at_least(0.8)),
    Figure("drain_empty", "tasks/s"),
    Figure("drain", "tasks/s", per="drain_empty", target=at_least(0.8)),
    Figure("cpu_full", "us/task", per="cpu_empty"),
    *(Figure(f"{read}_{share}", "ms", target=at_most(20)) for read in READS for share in ("p50", "p99")),
    *(Figure(f"{read}_failed", "calls", target=at_most(0)) for read in READS),
    Figure("producer", "MB"),
    Figure("consumer-1", "MB"),
    Figure("status", "MB"),
)
# Beyond the default of 1,000,000 waiting tasks the queue would refuse more.
CONFIG = '[[queues]]\nname = "default"\nmax_backlog = 2000000\n'
SERVICES = ("consumer-1", "producer", "status")
PUBLISHED_SECONDS = 300.0
DRAIN_SECONDS = 300.0
POLL_SECONDS = 0.25


async def once(scope: Scope) -> Samples:
    """The same load on the same stack: empty, then full. The services are down only while the rows are made."""
    waiting, finished = scope.size(1_000_000, 20_000), scope.size(5_000_000, 50_000)
    tasks, warm_up = scope.size(20_000, 2_000), scope.size(2_000, 500)
    async with product(scope, config=CONFIG) as stack:
        empty = await submit_and_drain(stack, "echo", tasks, warm_up)
        for name in SERVICES:
            await stack.stop_part(name)
        started = time.monotonic()
        ids = await fill(stack.endpoints.database_url, waiting, finished)
        filled = time.monotonic() - started
        for name in reversed(SERVICES):
            if name != "consumer-1":
                await stack.start_part(name)
        await published(stack.endpoints.database_url, waiting, within=PUBLISHED_SECONDS)
        reads = await _reads(stack, ids, scope.size(200, 20))
        await stack.start_part("consumer-1")
        full = await _while_full(stack, tasks)
        memory = {name: megabytes(pids_of(stack)[name]) for name in SERVICES}
    rates = {"submit_empty": empty.accepted, "drain_empty": empty.rate, "submit": full.accepted, "drain": full.rate}
    cpu = cpu_per_task(empty.cpu, tasks, "empty") | cpu_per_task(full.cpu, tasks, "full")
    return rates | cpu | reads | memory | {"fill_seconds": filled}


async def _while_full(stack: LocalStack, tasks: int) -> Drain:
    """Submit `tasks` and wait until as many have ended: others, which waited before them."""
    url = stack.endpoints.database_url
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
        Worker(
            "bench.clients.submit_many",
            producer=stack.endpoints.producer,
            kind="echo",
            tasks=tasks,
            warm_up=500,
            batch=500,
            in_flight=4,
        ) as load,
    ):
        await load.ready()
        async with asyncio.timeout(DRAIN_SECONDS):
            # The consumer has just started: its first tasks are its warm-up.
            while (await finished_since(connection, 0.0))[0] < tasks // 10:  # noqa: ASYNC110 - see draining
                await asyncio.sleep(POLL_SECONDS)
            start = time.time()
            cpu = CpuWatch(pids_of(stack))
            load.go()
            client = await load.result()
            ended, rate = 0, 0.0
            while ended < tasks:
                await asyncio.sleep(POLL_SECONDS)
                ended, rate = await finished_since(connection, start)
            # For as many as were submitted: some more have ended by the time of the last look.
            used = {part: seconds * tasks / ended for part, seconds in cpu.used().items()} | {"client": client["cpu"]}
    required(client["accepted"] == tasks, f"{client['accepted']} of {tasks} tasks were accepted")
    return Drain(rate, tasks / (client["ended"] - client["started"]), used, client["sample"])


async def _reads(stack: LocalStack, ids: Sequence[str], times: int) -> Samples:
    arguments = {"producer": stack.endpoints.producer, "status": stack.endpoints.status, "ids": ids, "times": times}
    seen = await loaded("bench.clients.reads", **arguments)
    samples: Samples = {}
    for read in READS:
        seconds = seen[read]["seconds"]
        samples[f"{read}_p50"] = percentile(seconds, 0.5) * 1000
        samples[f"{read}_p99"] = percentile(seconds, 0.99) * 1000
        samples[f"{read}_failed"] = seen[read]["failed"]
    return samples
