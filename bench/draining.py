"""What the product has stored, asked straight from Postgres and as cheaply as that goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.measure import required
from bench.payloads import payload
from bench.processes import CpuWatch, pids_of
from bench.worker import Worker
from headrace import Client
from headrace_core.stack.dev import LocalStack

POLL_SECONDS = 0.01
# Two probes of partial indexes: a count would cost the run that it watches several milliseconds each time.
ACTIVE = """
select exists (select 1 from headrace_core.units where state = 'PENDING')
    or exists (select 1 from headrace_core.units where state = 'PROCESSING' and holder is not null)
    or exists (select 1 from headrace_core.units where state = 'PROCESSING' and unit = -1)
"""
OUTCOME = """
select count(*), count(*) filter (where state = 'COMPLETED'), count(*) filter (where attempt = 1 and epoch = 1),
       count(*) filter (where result::jsonb = payload::jsonb)
from headrace_core.units where unit = -1 and kind = %s
"""
RESULT_SECONDS = 10.0
WITHIN_SECONDS = 300.0
BATCH = 500
IN_FLIGHT = 4


async def drained(database_url: str, *, within: float) -> float:
    """Wait until no task is pending or running; returns when that was seen, by time.monotonic."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        async with asyncio.timeout(within):
            while (await _row(connection, ACTIVE))[0]:  # noqa: ASYNC110 - Postgres has no event for it
                await asyncio.sleep(POLL_SECONDS)
            return time.monotonic()


@dataclass(frozen=True, slots=True)
class Drain:
    """How it went: tasks a second from the first submit until all had ended, and until all were accepted; CPU seconds
    by process; ids of some of them."""

    rate: float
    accepted: float
    cpu: Mapping[str, float]
    sample: Sequence[str]


async def submit_and_drain(stack: LocalStack, kind: str, tasks: int, warm_up: int) -> Drain:
    """Submit `tasks` in calls of 500, four in flight, after a warm-up that has ended. Raises WrongResult."""
    load = Worker(
        "bench.clients.submit_many",
        producer=stack.endpoints.producer,
        kind=kind,
        tasks=tasks,
        warm_up=warm_up,
        batch=BATCH,
        in_flight=IN_FLIGHT,
    )
    async with load:
        await load.ready()
        await drained(stack.endpoints.database_url, within=WITHIN_SECONDS)
        cpu = CpuWatch(pids_of(stack))
        load.go()
        client = await load.result()
        ended = await drained(stack.endpoints.database_url, within=WITHIN_SECONDS)
        used = cpu.used() | {"client": client["cpu"]}
    required(client["accepted"] == tasks, f"{client['accepted']} of {tasks} tasks were accepted")
    started = client["started"]
    return Drain(tasks / (ended - started), tasks / (client["ended"] - started), used, client["sample"])


async def verify(database_url: str, kind: str, tasks: int) -> None:
    """Raise WrongResult unless exactly `tasks` tasks of `kind` are COMPLETED, by one attempt each, and echoed."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        stored, completed, once, equal = await _row(connection, OUTCOME, (kind,))
    required(stored == tasks, f"{stored} tasks of kind {kind} are stored, {tasks} were accepted")
    required(completed == tasks, f"{completed} of {tasks} tasks of kind {kind} are COMPLETED")
    required(once == tasks, f"{tasks - once} of {tasks} tasks of kind {kind} took more than one attempt")
    required(equal == tasks, f"{tasks - equal} of {tasks} tasks of kind {kind} have another result than their input")


async def verify_sample(stack: LocalStack, ids: Sequence[str]) -> None:
    """Raise WrongResult unless the SDK reads back what these tasks were to return."""
    async with Client(stack.endpoints.producer, stack.endpoints.status) as client:
        for one in ids:
            result: Any = await client.result(one, timeout=RESULT_SECONDS)
            task = await client.get(one, full=True)
            required(task.result_json == payload(result["number"]), f"task {one} has the result {task.result_json!r}")


async def _row(
    connection: psycopg.AsyncConnection[tuple[Any, ...]], statement: str, params: Sequence[Any] = ()
) -> tuple[Any, ...]:
    row = await (await connection.execute(statement.encode(), params)).fetchone()
    assert row is not None
    return row
