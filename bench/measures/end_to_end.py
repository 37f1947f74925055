"""Tasks per second from the first submit until all results are stored: the product over gRPC, and the bare loop."""

from __future__ import annotations

from bench.draining import submit_and_drain, verify, verify_sample
from bench.measure import Figure, Samples, Scope, at_least
from bench.processes import CpuWatch, cpu_per_task
from bench.references import bare
from bench.servers import product, servers
from bench.worker import Worker

WHAT = "echo, 200 bytes, SubmitTasks of 500: tasks/s from the first submit until all results are stored"
ON_DEMAND = False
TARGET = at_least(0.55)
FIGURES = (
    Figure("bare_loop", "tasks/s"),
    Figure("one_consumer", "tasks/s", per="bare_loop", target=TARGET),
    Figure("two_consumers", "tasks/s", per="bare_loop", target=TARGET),
    Figure("wide_consumer", "tasks/s", per="bare_loop", target=TARGET),
    Figure("cpu_bare_loop", "us/task"),
    Figure("cpu_one_consumer", "us/task", per="cpu_bare_loop"),
    Figure("cpu_two_consumers", "us/task", per="cpu_bare_loop"),
    Figure("cpu_wide_consumer", "us/task", per="cpu_bare_loop"),
    Figure("accepted_one_consumer", "tasks/s"),
)
# As many as the client of the product has calls.
BARE_IN_FLIGHT = 4
# What docs/operations.md advises for tasks of microseconds: batches are as large as there are places.
WIDE = '[[queues]]\nname = "default"\nmax_concurrency = 512\n'


async def once(scope: Scope) -> Samples:
    """The bare loop, then the product: one consumer, two, and one with as many places as a batch of the bare loop."""
    samples = await bare_loop(scope)
    samples |= await _with_consumers(scope, 1, "one_consumer")
    samples |= await _with_consumers(scope, 2, "two_consumers")
    samples |= await _with_consumers(scope, 1, "wide_consumer", config=WIDE)
    return samples


async def bare_loop(scope: Scope) -> Samples:
    """Tasks per second of the bare loop, and its CPU time."""
    tasks, warm_up = scope.size(40_000, 8_000), scope.size(2_000, 500)  # twice: it is over in a second or two
    async with servers(scope) as where:
        await bare.prepare(where.database_url, where.nats_url)
        arguments = {
            "database_url": where.database_url,
            "nats_url": where.nats_url,
            "tasks": tasks,
            "warm_up": warm_up,
            "in_flight": BARE_IN_FLIGHT,
        }
        async with (
            Worker("bench.references.bare_consume", **arguments) as consume,
            Worker("bench.references.bare_submit", **arguments) as submit,
        ):
            for worker in (submit, consume):
                await worker.ready()
            cpu = CpuWatch(where.pids)
            consume.go()
            submit.go()
            submitted, consumed = await submit.result(), await consume.result()
            used = cpu.used() | {"producer": submitted["cpu"], "consumer-1": consumed["cpu"]}
    return {"bare_loop": tasks / (consumed["ended"] - submitted["started"]), **cpu_per_task(used, tasks, "bare_loop")}


async def _with_consumers(scope: Scope, consumers: int, name: str, config: str = "") -> Samples:
    async with product(scope, consumers=consumers, config=config) as stack:
        tasks, warm_up = scope.size(20_000, 2_000), scope.size(2_000, 500)
        drain = await submit_and_drain(stack, "echo", tasks, warm_up)
        await verify(stack.endpoints.database_url, "echo", tasks + warm_up)
        await verify_sample(stack, drain.sample)
    return {name: drain.rate, f"accepted_{name}": drain.accepted, **cpu_per_task(drain.cpu, tasks, name)}
