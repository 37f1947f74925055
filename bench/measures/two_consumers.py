"""What a second consumer process adds where handlers wait 50 ms."""

from __future__ import annotations

from bench.draining import submit_and_drain, verify
from bench.measure import Figure, Samples, Scope, at_least
from bench.servers import product

WHAT = "handlers that wait 50 ms: rate with two consumer processes by the rate with one"
ON_DEMAND = False
FIGURES = (
    Figure("one", "tasks/s", per="slots"),
    Figure("two", "tasks/s", per="one", target=at_least(1.9)),
)
KIND = "bench-wait"
# 64 at once (the default of async handlers), 50 ms each.
SLOTS_PER_SECOND = 64 / 0.05


async def once(scope: Scope) -> Samples:
    """`slots` is what one consumer could do if everything but the waiting took no time."""
    samples = {"slots": SLOTS_PER_SECOND}
    for name, consumers in (("one", 1), ("two", 2)):
        tasks, warm_up = scope.size(8_000, 1_000), scope.size(1_000, 200)
        async with product(scope, consumers=consumers) as stack:
            samples[name] = (await submit_and_drain(stack, KIND, tasks, warm_up)).rate
            await verify(stack.endpoints.database_url, KIND, tasks + warm_up)
    return samples
