"""10,000 watchers of 10,000 tasks at one status process: memory of each, and how late 2,000 events a second arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from bench.measure import Figure, Samples, Scope, at_most, required
from bench.payloads import payload
from bench.processes import CpuWatch, cpu_per_task, pids_of, rss_bytes
from bench.report import percentile
from bench.servers import product
from bench.worker import Worker
from headrace import Client
from headrace_core.stack.dev import LocalStack

WHAT = "10,000 watchers: memory of the status process for each, ms from commit to arrival at 2,000 events/s"
ON_DEMAND = False
FIGURES = (
    Figure("memory", "kB/watcher", target=at_most(60)),
    Figure("p50", "ms"),
    Figure("p99", "ms", target=at_most(250)),
    Figure("events", "events/s"),
    Figure("open", "watches/s"),
)
CONNECTIONS = 4
# Each task that runs makes two events, its start and its end.
TASKS_PER_SECOND = 1_000
EVENTS = 2
# Submits and watches must be through before the first task is due.
LEAD_SECONDS = 60
QUICK_LEAD_SECONDS = 8
SETTLE_SECONDS = 1.0


async def once(scope: Scope) -> Samples:
    """All settings at their defaults. The tasks are delayed, each to its own millisecond, and do nothing."""
    watchers = scope.size(10_000, 500)
    async with product(scope) as stack:
        due = datetime.now(UTC) + timedelta(seconds=scope.size(LEAD_SECONDS, QUICK_LEAD_SECONDS))
        ids = await _delayed(stack, watchers, due)
        pid = pids_of(stack)["status"]
        before = rss_bytes(pid)
        async with Worker(
            "bench.clients.watchers", status=stack.endpoints.status, ids=ids, connections=CONNECTIONS
        ) as load:
            await load.ready()
            await asyncio.sleep(SETTLE_SECONDS)
            memory = (rss_bytes(pid) - before) / watchers
            late = (datetime.now(UTC) - due).total_seconds()
            required(late < 0, f"the watches were open {late:.1f} s after the first task was due: too slow to measure")
            cpu = CpuWatch(pids_of(stack) | {"client": load.pid})
            load.go()
            seen = await load.result()
            used = cpu.used()
    required(not seen["wrong"], f"{len(seen['wrong'])} watches were wrong, such as: {seen['wrong'][:1]}")
    delays = seen["delays"]
    required(len(delays) == EVENTS * watchers, f"{len(delays)} events came, not {EVENTS * watchers}")
    return {
        "memory": memory / 1e3,
        "p50": percentile(delays, 0.5) * 1000,
        "p99": percentile(delays, 0.99) * 1000,
        "worst": max(delays) * 1000,
        "events": len(delays) / seen["span"],
        "open": watchers / seen["opened_in"],
        **cpu_per_task(used, len(delays), "event"),
    }


async def _delayed(stack: LocalStack, tasks: int, due: datetime) -> Sequence[str]:
    """Submit tasks of which TASKS_PER_SECOND fall due every second from `due` on."""
    async with Client(stack.endpoints.producer, stack.endpoints.status) as client:
        text = payload(0).decode()
        requests = [
            client.request("echo", {"text": text}, run_at=due + timedelta(seconds=number / TASKS_PER_SECOND))
            for number in range(tasks)
        ]
        return [task.id for task in await client.submit_many(requests, timeout=30.0)]
