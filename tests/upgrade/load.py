"""Work for two releases at once, and what must have become of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace import Client
from headrace_core.db.pool import Database

LIMIT = 40.0


def wanted(number: int, ledger: str) -> tuple[str, dict[str, Any], Any]:
    """Kind, payload and result of the n-th task: plain ones, threads, output, shards, retries."""
    return (
        ("add", {"a": number, "b": 1}, {"sum": number + 1}),
        ("plain", {"n": number}, {"doubled": number * 2, "attempt": 1}),
        ("counts", {"steps": 3, "pause": 0.02}, {"steps": 3}),
        ("squares", {"count": 4}, {"sum": 14, "parts": 4}),
        ("third-time", {"ledger": ledger}, {"attempt": 3}),
    )[number % 5]


async def complete(clients: Sequence[Client], count: int, ledger: str, key: str) -> list[str]:
    """Submit `count` tasks by turns, read each result by the next client; the ids. `key` tells loads apart.

    Each is submitted to the next client once more, with its key: it must be the same task there.
    """

    async def one(number: int) -> str:
        here, there = clients[number % len(clients)], clients[(number + 1) % len(clients)]
        kind, payload, result = wanted(number, ledger)
        task = await here.submit(kind, payload, idempotency_key=f"{key}-{number}")
        again = await there.submit(kind, payload, idempotency_key=f"{key}-{number}")
        assert again.id == task.id
        assert await there.result(task.id, timeout=LIMIT) == result, kind
        return str(task.id)

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def watched(client: Client, task_id: str) -> list[tuple[int, str, str]]:
    """A task's whole history as a watch from its beginning shows it: sequence, what, of which unit."""
    async with asyncio.timeout(LIMIT):
        return [
            (event.sequence, str(event.WhichOneof("event")), str(event.unit))
            async for event in client.watch(task_id, after_sequence=0)
        ]


async def assert_ended_once(db: Database, ids: Sequence[str]) -> None:
    """Every task is COMPLETED, by one terminal event, at the cost of no crash; its events are dense."""
    rows = await db.fetch(
        "select u.task_id, u.state, u.crashes, u.sequence,"
        " count(*) as events, count(*) filter (where e.terminal) as ends"
        " from headrace_core.units u join headrace_core.events e using (task_id)"
        " where u.unit = -1 and u.task_id = any(%(ids)s::uuid[]) group by u.task_id, u.unit",
        {"ids": list(ids)},
    )
    assert {str(row["task_id"]) for row in rows} == set(ids)
    for row in rows:
        assert (row["state"], row["crashes"], row["ends"], row["events"]) == ("COMPLETED", 0, 1, row["sequence"])
