"""Memory of the services after many tasks."""

from __future__ import annotations

from collections.abc import Callable

from bench.draining import submit_and_drain, verify
from bench.measure import Figure, Samples, Scope, at_most
from bench.processes import anonymous_bytes, pids_of, rss_bytes, tree
from bench.servers import product

WHAT = "resident memory of producer, consumer and status after 200,000 tasks"
ON_DEMAND = False
FIGURES = (
    Figure("producer", "MB", target=at_most(150)),
    Figure("consumer-1", "MB", target=at_most(150)),
    Figure("status", "MB", target=at_most(120)),
)
STEP = 20_000
NO_MODEL = {
    "HEADRACE_AI_BACKEND": "openai",
    "HEADRACE_AI_BASE_URL": "http://127.0.0.1:9/v1",
    "HEADRACE_AI_MODEL": "none",
    "HEADRACE_AI_API_KEY": "none",
}


async def once(scope: Scope) -> Samples:
    """Shared pages count in every process. `…_before`: after the start; `…_anonymous`: without what maps a file.

    The model of `ai.analyze`, which consumers load by default, is somebody else's hundred megabytes: they are told of a
    server instead, which is never asked.
    """
    tasks = scope.size(200_000, 2_000)
    async with product(scope, environment=NO_MODEL) as stack:
        pids = {name: pid for name, pid in pids_of(stack).items() if name in stack.services}
        samples = {f"{name}_before": megabytes(pid) for name, pid in pids.items()}
        for _ in range(max(1, tasks // STEP)):
            await submit_and_drain(stack, "echo", min(tasks, STEP), 0)
        await verify(stack.endpoints.database_url, "echo", tasks)
        samples |= {name: megabytes(pid) for name, pid in pids.items()}
        return samples | {f"{name}_anonymous": megabytes(pid, anonymous_bytes) for name, pid in pids.items()}


def megabytes(pid: int, of: Callable[[int], int] = rss_bytes) -> float:
    """Memory of a process and its descendants."""
    return sum(of(one) for one in tree(pid)) / 1e6
