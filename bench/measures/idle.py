"""What it costs to run and have nothing to do."""

from __future__ import annotations

import asyncio

from bench.draining import submit_and_drain
from bench.measure import Figure, Samples, Scope, at_most
from bench.processes import CpuWatch, pids_of
from bench.servers import product

WHAT = "CPU of all processes over 20 s of idleness, in % of one core"
ON_DEMAND = False
FIGURES = (
    Figure("all", "% of a core", target=at_most(3)),
    Figure("services", "% of a core"),
)
SERVERS = ("postgres", "nats")
# The relay takes it easier ten seconds after the last task.
SETTLE_SECONDS = 12


async def once(scope: Scope) -> Samples:
    """One process of each service, after some tasks: connections are open, caches warm."""
    seconds = scope.size(20, 4)
    async with product(scope) as stack:
        await submit_and_drain(stack, "echo", 500, 0)
        await asyncio.sleep(scope.size(SETTLE_SECONDS, 3))  # idleness itself is what is measured
        cpu = CpuWatch(pids_of(stack))
        await asyncio.sleep(seconds)
        used = {name: share / seconds * 100 for name, share in cpu.used().items()}
    services = sum(share for name, share in used.items() if name not in SERVERS)
    return {"all": sum(used.values()), "services": services, **used}
