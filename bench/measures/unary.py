"""One task a call from 64 callers: the product, a handler that does nothing, and one that commits for each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.draining import drained, verify
from bench.measure import Figure, Samples, Scope, at_least
from bench.processes import CpuWatch, cpu_per_task, pids_of
from bench.servers import Servers, product, servers
from bench.worker import Worker, loaded
from headrace_core.stack.dev import LocalStack

WHAT = "SubmitTask, 64 callers: accepted/s with one producer and with two, everything else running"
ON_DEMAND = False
FIGURES = (
    Figure("trivial_handler", "calls/s"),
    Figure("commit_per_call", "calls/s"),
    Figure("one_producer", "tasks/s", per="trivial_handler", target=at_least(0.7)),
    Figure("one_producer", "tasks/s", per="commit_per_call", target=at_least(1.5)),
    Figure("two_producers", "tasks/s", per="one_producer"),
    Figure("without_consumer", "tasks/s", per="trivial_handler"),
    Figure("cpu_trivial_handler", "us/call"),
    Figure("cpu_commit_per_call", "us/call"),
    Figure("cpu_one_producer", "us/task", per="cpu_trivial_handler"),
    Figure("cpu_without_consumer", "us/task", per="cpu_trivial_handler"),
)
CALLERS = 64
DRAIN_SECONDS = 120.0


async def once(scope: Scope) -> Samples:
    """The references, then the product. `without_consumer`: while nobody runs what is accepted."""
    samples = _reference("trivial_handler", await reference_calls(scope, None))
    async with servers(scope) as where:
        samples |= _reference("commit_per_call", await reference_calls(scope, where))
    samples |= await _product(scope, "one_producer")
    samples |= await _product(scope, "two_producers", producers=2)
    samples |= await _product(scope, "without_consumer", consumer_stopped=True)
    return samples


def _reference(name: str, seen: dict[str, Any]) -> Samples:
    return {name: rate(seen), **cpu_per_task(seen["used"], seen["calls"] + seen["warmed"], name)}


async def reference_calls(scope: Scope, where: Servers | None, **more: Any) -> dict[str, Any]:
    """What the load client saw of a handler of bench.references.rpc_server; without servers the trivial one."""
    database_url, pids = (where.database_url, where.pids) if where else ("", {})
    async with Worker("bench.references.rpc_server", database_url=database_url) as server:
        address = await server.told("address")
        await server.ready()
        cpu = CpuWatch({**pids, "server": server.pid})
        seen = await submitted(scope, [address], **more)
        used = cpu.used() | {"client": seen["cpu"]}
        server.go()
        await server.result()
    return seen | {"used": used}


def rate(seen: dict[str, Any]) -> float:
    """Calls a second."""
    return float(seen["calls"] / seen["took"])


async def submitted(scope: Scope, addresses: Sequence[str], **more: Any) -> dict[str, Any]:
    """What the load client saw."""
    seconds, warm_up = (1.5, 0.5) if scope.quick else (6.0, 2.0)
    arguments = {"kind": "echo", "callers": CALLERS, "seconds": seconds, "warm_up": warm_up} | more
    return await loaded("bench.clients.submit_unary", addresses=addresses, **arguments)


def producer_addresses(stack: LocalStack) -> list[str]:
    """Where the producers of a stack answer."""
    found = (service.addresses.grpc for service in stack.services.values() if service.module == "producer")
    return [address for address in found if address]


async def _product(scope: Scope, name: str, *, producers: int = 1, consumer_stopped: bool = False) -> Samples:
    async with product(scope, producers=producers) as stack:
        if consumer_stopped:
            await stack.stop_part("consumer-1")
        cpu = CpuWatch(pids_of(stack))
        seen = await submitted(scope, producer_addresses(stack))
        used = cpu.used() | {"client": seen["cpu"]}
        accepted = seen["calls"] + seen["warmed"]
        if consumer_stopped:
            await stack.start_part("consumer-1")
        await drained(stack.endpoints.database_url, within=DRAIN_SECONDS)
        await verify(stack.endpoints.database_url, "echo", accepted)
    return {name: rate(seen), **cpu_per_task(used, accepted, name)}
