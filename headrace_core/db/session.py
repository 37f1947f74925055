"""What each connection is set to, and whether it keeps that: a pooler may stand between us and Postgres.

The settings are made by SQL and not by the start-up parameter `options`: PgBouncer refuses that, or is told to drop it,
and promise G1 would go with it. They last as long as the session. A pooler that hands our statements to changing
sessions (PgBouncer's transaction and statement modes) loses them without a word, so a service refuses to start behind
one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import psycopg
from psycopg import AsyncConnection

# A plan is kept for as long as a connection lives, and statistics are a minute old at best. One that was made while the
# tables were empty, or waiting tasks few, reads all of a million rows for each batch. So joins go from the few to the
# many by an index, always: every statement of ours is written for that (docs/decisions/0011-plans-by-index.md).
_BY_INDEX = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "enable_material": "off"}

# Promise G1 asks for synchronous_commit at least `on`, whatever the role's own setting is; remote_apply is more.
_SET = """
select count(set_config(s.name, s.value, false)) as made, pg_backend_pid() as pid,
    set_config('synchronous_commit', case current_setting('synchronous_commit')
        when 'remote_apply' then 'remote_apply' else 'on' end, false)
from unnest(%(names)s::text[], %(values)s::text[]) as s (name, value)
"""
_PID = "select pg_backend_pid() as pid"
TRIES = 5
SHARED = (
    "HEADRACE_DATABASE_URL leads to a pooler that gives the statements of one connection to changing sessions of"
    " Postgres, where settings and prepared statements get lost: use pool_mode = session for this database and user"
)


def settings(statement_timeout: float) -> dict[str, str]:
    """The settings of every connection, besides synchronous_commit; `statement_timeout` in seconds."""
    return {
        "TimeZone": "UTC",
        "statement_timeout": str(int(statement_timeout * 1000)),
        "idle_in_transaction_session_timeout": "30000",
        "jit": "off",
        **_BY_INDEX,
    }


async def apply(connection: AsyncConnection[Any], wanted: Mapping[str, str]) -> int:
    """Make the settings, in one round trip; the process id of the session that has them now."""
    params = {"names": list(wanted), "values": list(wanted.values())}
    row = await (await connection.execute(_SET.encode(), params, prepare=False)).fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row["pid"])


async def is_shared(
    connection: AsyncConnection[Any], pid: int, connect: Callable[[], Awaitable[AsyncConnection[Any]]], within: float
) -> bool:
    """Whether a pooler takes the session `pid` away from `connection` between its statements. True is certain.

    A pooler hands out the session that came back last, or goes through them by turns. So our next statement meets
    another one, or a second connection gets ours for its transaction a moment after we had it. Where no second one is
    to be had in `within` seconds, or others always come between, the answer is False.
    """
    if pid == connection.info.backend_pid:
        return False  # Postgres itself answered when this connection was made; poolers answer with numbers of their own
    try:
        async with asyncio.timeout(within), await connect() as other:
            for _ in range(TRIES):
                # Twice: by turns, two sessions and two connections would go round in step.
                if await _pid(connection) != pid or await _pid(connection) != pid:
                    return True
                async with other.transaction():
                    if await _pid(other) == pid:
                        return True
    except (psycopg.Error, TimeoutError):
        return False
    return False


async def _pid(connection: AsyncConnection[Any]) -> int:
    row = await (await connection.execute(_PID.encode(), prepare=False)).fetchone()
    assert row is not None, "a function has a value"
    return int(row["pid"])
