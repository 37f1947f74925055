"""The measures that every task queue goes through, in the queue's own interpreter: standard library only.

A script is called as `prepare` (create tables, once, before any worker runs) or as `measure ORDER`, where ORDER is
JSON: measures, tasks, times, processes (names and ids of those whose CPU counts), patience (seconds), answer (the
file to write).
"""

import asyncio
import gc
import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

PAYLOAD = {
    "document": "contract-2026-000417",
    "customer": "c-5f0e92d1a7b34c68",
    "pages": [1, 2, 3, 5, 8, 13, 21, 34],
    "options": {"summary": True, "language": "en", "urgent": False},
    "note": "what each queue is given, one by one and in bulk.....",
}
RESULT = {"ok": True}
CHUNK = 500
SAMPLE = 50
FIRST_TRIPS = 20
WARM_SECONDS = 2.0
WARM_TASKS = 200
RESULT_SECONDS = 60.0
# How often a client asks for one result where the library itself polls and lets the interval be chosen.
RESULT_POLL_SECONDS = 0.001
QUIET_CORES, QUIET_WINDOW_SECONDS, QUIET_WAIT_SECONDS = 0.25, 0.5, 10.0
COARSE_POLL_SECONDS, FINE_POLL_SECONDS = 0.05, 0.005


class Peer(Protocol):
    """A task queue as its own client sees it. Handles are what `submit` returned, one for each task."""

    packages: tuple[str, ...]
    expected: Any
    bulk: Callable[[int], Awaitable[list[Any]]] | None

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def submit(self, tasks: int) -> list[Any]: ...
    async def stored(self) -> int: ...
    async def result(self, handle: Any) -> Any: ...


async def in_flight(limit: int, count: int, submit_one: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Call `submit_one` `count` times, at most `limit` at once."""
    turns, handles = iter(range(count)), []

    async def caller() -> None:
        for _ in turns:
            handles.append(await submit_one())  # noqa: PERF401  (the callers share the list)

    await asyncio.gather(*(caller() for _ in range(min(limit, count))))
    return handles


def chunks(tasks: int) -> list[int]:
    """Return the sizes of the bulk calls for `tasks` tasks."""
    return [min(CHUNK, tasks - start) for start in range(0, tasks, CHUNK)]


async def _until_quiet(order: dict[str, Any]) -> None:
    """Wait, not for long, until other programs leave this machine alone; how busy they were is measured anyway."""
    deadline = time.perf_counter() + QUIET_WAIT_SECONDS
    others = QUIET_CORES
    while others >= QUIET_CORES and time.perf_counter() < deadline:
        with Meter(order["processes"]) as meter:
            await asyncio.sleep(QUIET_WINDOW_SECONDS)
        others = meter.used["other_cores"]


async def end_to_end(
    peer: Peer, order: dict[str, Any], submit: Callable[[int], Awaitable[list[Any]]]
) -> dict[str, Any]:
    tasks = order["tasks"]
    target = await peer.stored() + tasks
    gc.collect()
    with Meter(order["processes"]) as meter:
        start = time.perf_counter()
        handles = await submit(tasks)
        submitted = time.perf_counter() - start
        await _until_stored(peer, target, tasks, order["patience"])
        seconds = time.perf_counter() - start
    await _check(peer, handles)
    return {"tasks": tasks, "seconds": seconds, "submit_seconds": submitted, **meter.used}


async def latency(peer: Peer, order: dict[str, Any]) -> dict[str, Any]:
    times = []
    with Meter(order["processes"]) as meter:
        for _ in range(order["times"]):
            start = time.perf_counter()
            await _round_trip(peer)
            times.append((time.perf_counter() - start) * 1000)
    return {"milliseconds": times, **meter.used}


async def _round_trip(peer: Peer) -> None:
    (handle,) = await peer.submit(1)
    async with asyncio.timeout(RESULT_SECONDS):
        result = await peer.result(handle)
    if result != peer.expected:
        raise RuntimeError(f"the result is {result!r}, expected {peer.expected!r}")


async def _until_stored(peer: Peer, target: int, tasks: int, patience: float) -> None:
    deadline = time.perf_counter() + patience
    while (missing := target - await peer.stored()) > 0:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{missing} of {tasks} tasks have no result after {patience:.0f} s")
        # Counting costs the server something, so it is done often only near the end.
        await asyncio.sleep(COARSE_POLL_SECONDS if missing > tasks / 5 else FINE_POLL_SECONDS)


async def _check(peer: Peer, handles: list[Any]) -> None:
    for handle in random.sample(handles, min(SAMPLE, len(handles))):
        async with asyncio.timeout(RESULT_SECONDS):
            result = await peer.result(handle)
        if result != peer.expected:
            raise RuntimeError(f"a stored result is {result!r}, expected {peer.expected!r}")


async def _warm_up(peer: Peer, order: dict[str, Any]) -> None:
    """Long enough for a second worker process to have started too."""
    start, trips = time.perf_counter(), 0
    while trips < FIRST_TRIPS or time.perf_counter() - start < WARM_SECONDS:
        await _round_trip(peer)
        trips += 1
    target = await peer.stored() + WARM_TASKS
    await peer.submit(WARM_TASKS)
    await _until_stored(peer, target, WARM_TASKS, order["patience"])


async def _measure(peer: Peer, order: dict[str, Any]) -> dict[str, Any]:
    await _warm_up(peer, order)
    measured = {}
    for name in order["measures"]:
        await _until_quiet(order)
        if name == "end_to_end":
            measured[name] = await end_to_end(peer, order, peer.submit)
        elif name == "end_to_end_bulk" and peer.bulk is not None:
            measured[name] = await end_to_end(peer, order, peer.bulk)
        elif name == "latency":
            measured[name] = await latency(peer, order)
    return measured


async def _run(peer: Peer, arguments: list[str]) -> None:
    await peer.open()
    try:
        if arguments[0] == "measure":
            order = json.loads(arguments[1])
            measured = await _measure(peer, order)
            versions = {name: importlib.metadata.version(name) for name in peer.packages}
            _write(Path(order["answer"]), {"measures": measured, "versions": versions})
    finally:
        await peer.close()


def _write(path: Path, answer: dict[str, Any]) -> None:
    path.write_text(json.dumps(answer))


def main(peer: Peer, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Do what the command line says with `peer`; `open` also creates what the queue keeps in its servers."""
    assert len(json.dumps(PAYLOAD)) == 238, len(json.dumps(PAYLOAD))
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_run(peer, sys.argv[1:]))


class Meter:
    """CPU seconds over a `with` block: of this process, of the trees of `processes`, and of everybody else."""

    def __init__(self, processes: dict[str, int]) -> None:
        self.used: dict[str, Any] = {}
        self._processes = processes

    def __enter__(self) -> "Meter":
        self._start, self._before = time.perf_counter(), self._read()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.perf_counter() - self._start
        used = {name: after - self._before[name] for name, after in self._read().items()}
        others = used.pop("busy") - sum(used.values())
        self.used = {"cpu": used, "other_cores": max(0.0, others) / wall}

    def _read(self) -> dict[str, float]:
        own, second = os.times(), os.sysconf("SC_CLK_TCK")
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = sum(fields) - fields[3] - fields[4]  # without idle and waiting for disks
        trees = {name: ticks / second for name, ticks in _trees(self._processes).items()}
        return {"busy": busy / second, "client": own.user + own.system, **trees}


def _trees(roots: dict[str, int]) -> dict[str, int]:
    """CPU ticks of each process and all that descend from it, children that ended and were waited for included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        ticks[pid] = sum(int(field) for field in fields[11:15])
    return {name: sum(ticks[pid] for pid in ticks if _descends(pid, root, parents)) for name, root in roots.items()}


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid and pid != root:
        pid = parents.get(pid, 0)
    return pid == root
