"""How far the tasks are, read from Postgres past all wires; and waiting until they have ended."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import psycopg

PAUSE = 1.0
ANSWER_SECONDS = 5.0
_STANDING = b"""
select count(*) filter (where unit = -1),
       count(*) filter (where unit = -1 and state in ('PENDING', 'PROCESSING')),
       count(*) filter (where state in ('PENDING', 'PROCESSING'))
from headrace_core.units
"""
_OPEN = b"""
select kind, task_id::text, unit, state, reason, epoch, dispatch, worker, due_at::text from headrace_core.units
where state in ('PENDING', 'PROCESSING') order by created_at, unit limit 20
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """Numbers of tasks, and of units that have not ended."""

    tasks: int = 0
    open_tasks: int = 0
    open_units: int = 0


class Watchman:
    """Looks at the tables once a second. `standing` is as of the last look that was answered."""

    def __init__(self, database_url: str) -> None:
        self.standing = Standing()
        self._url = database_url

    async def run(self) -> None:
        """Look until cancelled; a Postgres that is down is looked at again."""
        while True:
            # A Postgres that is down is one of the faults.
            with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
                await self.look()
            await asyncio.sleep(PAUSE)

    async def look(self) -> Standing:
        """Look once."""
        ((tasks, open_tasks, open_units),) = await self._rows(_STANDING)
        self.standing = Standing(tasks, open_tasks, open_units)
        return self.standing

    async def until_ended(self, within: float) -> bool:
        """Wait until every unit has ended; False if some have not `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while (await self.look()).open_units:  # noqa: ASYNC110 - rows of another process can only be polled
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            return False
        return True

    async def open_units(self) -> list[str]:
        """Some of the units that have not ended, for people."""
        return [" ".join(str(value) for value in row) for row in await self._rows(_OPEN)]

    async def _rows(self, statement: bytes) -> list[tuple[Any, ...]]:
        async with asyncio.timeout(ANSWER_SECONDS):
            async with await psycopg.AsyncConnection.connect(self._url) as connection:
                return await (await connection.execute(statement)).fetchall()
