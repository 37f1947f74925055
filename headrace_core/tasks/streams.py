"""Which stream is it? One made anew under its old name is the next incarnation, with nothing of what the last had."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from headrace_core.db import queries
from headrace_core.db.pool import Database, Transaction

_SQL = queries.load("headrace_core.tasks", "sql/streams.sql")


async def incarnation_of(db: Database, name: str, created: str, look: Callable[[], Awaitable[str]]) -> tuple[str, int]:
    """The creation time and the incarnation of the stream `name`, which was seen with the creation time `created`.

    Where that is news, `look` asks the server once more, under the lock of the stream's row: two replicas that see
    the old and the new stream must not note them in the wrong order. `look` must have a limit of time of its own;
    what it raises is raised here, and nothing is noted.

    Raises:
        DatabaseUnavailable: nothing is known.
    """
    rows = await db.fetch(_SQL["known"], {"name": name})
    if rows and rows[0]["created"] == created:
        return created, rows[0]["incarnation"]

    async def work(tx: Transaction) -> tuple[str, int]:
        await tx.execute(_SQL["enter"], {"name": name})
        (row,) = await tx.fetch(_SQL["lock"], {"name": name})
        seen = await look()
        if row["created"] == seen:
            return seen, row["incarnation"]
        (noted,) = await tx.fetch(_SQL["note"], {"name": name, "created": seen})
        return seen, noted["incarnation"]

    return await db.run(work)
