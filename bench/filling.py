"""Rows made by SQL, as the product would have left them: millions that no client has to submit first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg

from headrace_core.db import queries

STEP = 250_000
POLL_SECONDS = 0.5
# The relay's window on a subject, and the bound for a table without statistics.
WINDOW = 100_000
QUIET_POLLS = 10
# Results are kept longer than events: only the newest finished tasks have theirs.
WITH_EVENTS = 1_000_000
SAMPLE = 200

_SQL = queries.load("bench", "sql/filling.sql")

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def fill(database_url: str, waiting: int, finished: int) -> Sequence[str]:
    """Add finished and waiting tasks, bring the tables into the state that autovacuum keeps them in; ids of some."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        for first, last in _steps(finished):
            events = last > finished - WITH_EVENTS
            await connection.execute(
                _SQL["finished"].encode(), {"first": first, "last": last, "of": finished, "events": events}
            )
        for first, last in _steps(waiting):
            await connection.execute(_SQL["waiting"].encode(), {"first": first, "last": last})
        await connection.execute("vacuum (analyze) headrace_core.units, headrace_core.events")
        await connection.execute("checkpoint")
        found = await connection.execute(_SQL["some"].encode(), {"limit": SAMPLE})
        return [row[0] for row in await found.fetchall()]


async def published(database_url: str, waiting: int, *, within: float) -> None:
    """Wait until the relay has filled its window in the stream: from then on it only follows the consumers."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        async with asyncio.timeout(within):
            count, quiet = -1, 0
            while count < min(waiting, WINDOW) and quiet < QUIET_POLLS:
                before = count
                row = await (await connection.execute(_SQL["published"].encode())).fetchone()
                count = row[0] if row else 0
                quiet = quiet + 1 if count == before else 0
                await asyncio.sleep(POLL_SECONDS)


async def finished_since(connection: Connection, since: float) -> tuple[int, float]:
    """How many tasks have ended since then (seconds since 1970) and since the newest consumer started, and how many a
    second."""
    row = await (await connection.execute(_SQL["ended"].encode(), {"since": since})).fetchone()
    assert row is not None
    return int(row[0]), float(row[1])


def _steps(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + STEP - 1, count)) for first in range(1, count + 1, STEP)]
