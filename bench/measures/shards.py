"""A task of 1,000 trivial shards, from the submit until it is merged."""

from __future__ import annotations

import statistics
import time

from bench.draining import submit_and_drain
from bench.measure import Figure, Samples, Scope, at_most, required
from bench.servers import product
from headrace import Client

WHAT = "a task of 1,000 trivial shards: seconds from submit until merged"
ON_DEMAND = False
FIGURES = (
    Figure("plain_tasks", "s"),
    Figure("merged", "s", target=at_most(1)),
    Figure("merged", "s", per="plain_tasks"),
)
RESULT_SECONDS = 60.0


async def once(scope: Scope) -> Samples:
    """The median of a few, after one that does not count. The reference: as many plain tasks, submitted and drained."""
    shards = scope.size(1_000, 100)
    async with product(scope) as stack:
        plain = await submit_and_drain(stack, "echo", shards, shards)
        async with Client(stack.endpoints.producer, stack.endpoints.status) as client:
            seconds = [await merged(client, shards) for _ in range(scope.size(6, 2))][1:]
    return {"plain_tasks": shards / plain.rate, "merged": statistics.median(seconds), "worst": max(seconds)}


async def merged(client: Client, shards: int) -> float:
    """Seconds of one task. Raises WrongResult for another result than the merge of all shards."""
    started = time.perf_counter()
    task = await client.submit("bench-shards", {"shards": shards})
    result = await client.result(task.id, timeout=RESULT_SECONDS)
    seconds = time.perf_counter() - started
    wanted = {"shards": shards, "sum": shards * (shards - 1) // 2}
    required(result == wanted, f"{shards} shards were merged to {result}, not {wanted}")
    return seconds
