"""What counting costs: the same tasks with metrics as they are, and with metrics that do nothing, by turns.

    python -m tests.scenarios.metrics_cost [--rounds 16] [--tasks 2000]

A producer, a consumer and their client share the process and its loop, so the CPU of everything that counts is measured
and nothing else changes between two rounds. Postgres and NATS are those of a local stack.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from prometheus_client import Counter, Gauge, Histogram

from consumer.app import ConsumerService
from headrace import Client
from headrace_core.db.pool import Database
from headrace_core.settings.environment import ServiceSettings, load_settings
from headrace_core.stack.dev import Endpoints
from headrace_core.stack.testing import start
from headrace_core.telemetry import metrics
from producer.app import ProducerService

CHUNK = 500
METHODS = ((Counter, "inc"), (Gauge, "set"), (Histogram, "observe"), (metrics.BatchHistogram, "observe_many"))


class Round(NamedTuple):
    """What a round took for each task, in microseconds: of CPU, and of the clock."""

    cpu: float
    wall: float


@contextmanager
def counting_nothing() -> Iterator[None]:
    """Metrics keep their shape and do no work."""
    saved = [(owner, name, getattr(owner, name)) for owner, name in METHODS]
    for owner, name, _ in saved:
        setattr(owner, name, lambda *_args, **_kwargs: None)
    try:
        yield
    finally:
        for owner, name, method in saved:
            setattr(owner, name, method)


async def one_round(client: Client, db: Database, tasks: int, label: str) -> Round:
    cpu, wall = time.process_time(), time.perf_counter()
    for begin in range(0, tasks, CHUNK):
        await client.submit_many([{"n": n} for n in range(begin, begin + CHUNK)], kind="echo", labels={"round": label})
    asked = {"labels": f'{{"round": "{label}"}}'}
    while True:
        (row,) = await db.fetch(
            "select count(*) as n from headrace.tasks where labels @> %(labels)s and state = 'COMPLETED'", asked
        )
        if row["n"] == tasks:
            per_task = 1e6 / tasks
            return Round((time.process_time() - cpu) * per_task, (time.perf_counter() - wall) * per_task)
        await asyncio.sleep(0.02)


async def measure(endpoints: Endpoints, rounds: int, tasks: int) -> None:
    settings = _settings(endpoints)
    producer, consumer, db = ProducerService(settings), ConsumerService(settings), Database(endpoints.database_url)
    await db.open()
    await consumer.start()
    await producer.start()
    assert producer.grpc_address is not None
    found: dict[bool, list[Round]] = {True: [], False: []}
    async with Client(producer=producer.grpc_address, status=endpoints.status) as client:
        await one_round(client, db, tasks, "warm-up")
        for number in range(rounds):
            counts = number % 4 in (0, 3)  # ABBA: a drift of the machine meets both alike
            found[counts].append(await _one(client, db, tasks, str(number), counts=counts))
            print(f"{'counting' if counts else 'nothing ':8} {found[counts][-1]}", flush=True)
    _report(found)
    for service in (producer, consumer):
        await service.drain()
        await service.stop()
    await db.close()


async def _one(client: Client, db: Database, tasks: int, label: str, *, counts: bool) -> Round:
    if counts:
        return await one_round(client, db, tasks, label)
    with counting_nothing():
        return await one_round(client, db, tasks, label)


def _report(found: dict[bool, list[Round]]) -> None:
    for name in Round._fields:
        with_metrics, without = (statistics.median(getattr(each, name) for each in found[key]) for key in (True, False))
        print(f"{name}: {with_metrics:.1f} / {without:.1f} µs a task = {with_metrics / without:.3f}")


def _settings(endpoints: Endpoints) -> ServiceSettings:
    variables = {"HEADRACE_DATABASE_URL": endpoints.database_url, "HEADRACE_NATS_URL": endpoints.nats_url}
    return load_settings(variables, default_listen="127.0.0.1:0")


def main(arguments: Any = None) -> None:
    """Print each round, and the medians' ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=2000)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, start(Path(folder) / "data", consumers=0) as stack:
        uvloop.run(measure(stack.stack.endpoints, given.rounds, given.tasks))


if __name__ == "__main__":
    main()
