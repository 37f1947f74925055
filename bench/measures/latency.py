"""One task at a time: from the submit until its watcher has the COMPLETED event."""

from __future__ import annotations

from bench.measure import Figure, Samples, Scope, at_most
from bench.measures.unary import reference_calls
from bench.report import percentile
from bench.servers import product, servers
from bench.worker import loaded

WHAT = "one task at a time: ms from submit until the watcher has the COMPLETED event"
ON_DEMAND = False
FIGURES = (
    Figure("commit_call_p50", "ms"),
    Figure("p50", "ms", target=at_most(4)),
    Figure("p99", "ms", target=at_most(15)),
    Figure("p50", "ms", per="commit_call_p50"),
    Figure("submit_p50", "ms", per="commit_call_p50"),
)


async def once(scope: Scope) -> Samples:
    """The reference is one caller of the handler that commits for each call."""
    async with servers(scope) as where:
        calls = await reference_calls(scope, where, callers=1)
    async with product(scope) as stack:
        seen = await loaded(
            "bench.clients.latency",
            producer=stack.endpoints.producer,
            status=stack.endpoints.status,
            tasks=scope.size(500, 50),
            warm_up=scope.size(100, 10),
        )
    return {
        "commit_call_p50": percentile(calls["seconds"], 0.5) * 1000,
        "p50": percentile(seen["end"], 0.5) * 1000,
        "p99": percentile(seen["end"], 0.99) * 1000,
        "worst": max(seen["end"]) * 1000,
        "submit_p50": percentile(seen["submit"], 0.5) * 1000,
        "submit_p99": percentile(seen["submit"], 0.99) * 1000,
    }
