"""How long a submit takes while the producer has half of what it can take."""

from __future__ import annotations

from bench.draining import drained, verify
from bench.measure import Figure, Samples, Scope, at_most
from bench.measures.unary import DRAIN_SECONDS, producer_addresses, rate, submitted
from bench.report import percentile
from bench.servers import product

WHAT = "SubmitTask at half of the greatest rate, calls at fixed times: ms until accepted"
ON_DEMAND = False
FIGURES = (
    Figure("rate", "tasks/s", per="greatest"),
    Figure("p50", "ms"),
    Figure("p99", "ms", target=at_most(50)),
)
SHARE = 0.5


async def once(scope: Scope) -> Samples:
    """First the greatest rate (64 callers), then, when all of that has ended, half of it."""
    async with product(scope) as stack:
        full = await submitted(scope, producer_addresses(stack))
        await drained(stack.endpoints.database_url, within=DRAIN_SECONDS)
        half = await submitted(scope, producer_addresses(stack), rate=rate(full) * SHARE, callers=1)
        await drained(stack.endpoints.database_url, within=DRAIN_SECONDS)
        accepted = sum(seen["calls"] + seen["warmed"] for seen in (full, half))
        await verify(stack.endpoints.database_url, "echo", accepted)
    return {
        "greatest": rate(full),
        "rate": rate(half),
        "p50": percentile(half["seconds"], 0.5) * 1000,
        "p99": percentile(half["seconds"], 0.99) * 1000,
        "worst": max(half["seconds"]) * 1000,
    }
