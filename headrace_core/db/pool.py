"""The pool of connections and the two ways to use it: one statement, or one transaction.

Every call is bounded in time, waiting for a connection included. A transaction that meets a deadlock or a serialization
failure is run again with the same input, so its work must be a function of that input alone.

At the limit the connection is cut instead of cancelling the call: psycopg answers a cancellation by asking the server
to give up and waits 10 s for that, for nothing where the server is frozen or the network silent.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import args_row, dict_row
from psycopg_pool import AsyncConnectionPool

from headrace_core.db import arrays, session
from headrace_core.db.errors import DatabaseUnavailable, is_repeatable, is_shortage, translate
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import metrics

Row = dict[str, Any]
Params = Mapping[str, Any]
T = TypeVar("T")
Connection = AsyncConnection[Row]

# For the idle connections of a pool: without them those to a host that is gone would be found out one by one.
KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
CONNECT_SECONDS = 3
"""For the connection, and once more for its settings."""
_KWARGS: dict[str, Any] = {"row_factory": dict_row, "connect_timeout": CONNECT_SECONDS, **KEEPALIVE}
SHORTAGE_SECONDS = 15.0


class _JsonText(psycopg.adapt.Loader):
    """A json column as its UTF-8 text: payloads and results pass through these services unparsed."""

    def load(self, data: Any) -> bytes:
        return bytes(data)


class Transaction:
    """Statements within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, sql: str, params: Params = {}) -> list[Row]:  # noqa: B006 (never changed)
        """Run a statement that returns rows."""
        return await _only(self._connection, sql, params)

    async def execute(self, sql: str, params: Params = {}) -> int:  # noqa: B006 (never changed)
        """Run a statement; how many rows it changed."""
        return await _changed(self._connection, sql, params)


class Database:
    """A bounded pool of connections to one database, with our types and limits on each."""

    def __init__(self, url: str, *, max_size: int = 8, statement_timeout: float = 5.0) -> None:
        """`max_size` connections at most; `statement_timeout` in seconds is enforced by Postgres as well."""
        self._url = url
        self._settings = session.settings(statement_timeout)
        # Whoever asks for one connection only needs it now, and the pool of its process has looked already.
        self._looked = max_size == 1
        self._looking = asyncio.Lock()
        self._refusal = ""
        self._pool: AsyncConnectionPool[AsyncConnection[Row]] = AsyncConnectionPool(
            url,
            kwargs=_KWARGS,
            min_size=1,
            max_size=max_size,
            open=False,
            configure=self._configure,
            reconnect_timeout=0,
            check=None,
            name="headrace",
        )
        self._shortage = ""
        self._shortage_until = 0.0
        self._hide: Callable[[], None] = lambda: None

    @property
    def shortage(self) -> str:
        """What Postgres ran out of in the last 15 s, empty: nothing. With a full disk it still answers reads."""
        return self._shortage if time.monotonic() < self._shortage_until else ""

    async def open(self) -> None:
        """Start connecting in the background; returns at once, also while Postgres is away."""
        self._hide = metrics.show(self._figures)
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection; at most 5 s."""
        self._hide()
        await self._pool.close(timeout=5)

    async def fetch(self, sql: str, params: Params = {}, *, timeout: float = 5.0) -> list[Row]:  # noqa: B006
        """Run one statement in a transaction of its own.

        Raises:
            DatabaseUnavailable: no answer within `timeout` seconds, or the connection was lost.
            DataRejected: the data of the statement is bad.
            SettingsError: the URL leads to a pooler that cannot be used, as found when the first connection was made.
        """
        return await self._bounded(lambda connection: _only(connection, sql, params), timeout)

    async def fetch_as(self, make: Callable[..., T], sql: str, params: Params, *, timeout: float = 5.0) -> list[T]:
        """As `fetch`; each row is `make(*columns)`: for hot paths, where a dict for each row is too much."""

        async def work(connection: Connection) -> list[T]:
            cursor = connection.cursor(row_factory=args_row(make))
            return await (await cursor.execute(sql.encode(), params)).fetchall()

        return await self._bounded(work, timeout)

    async def execute(self, sql: str, params: Params = {}, *, timeout: float = 5.0) -> int:  # noqa: B006
        """Run one statement in a transaction of its own; how many rows it changed. Raises as `fetch`."""
        return await self._bounded(lambda connection: _changed(connection, sql, params), timeout)

    async def run(self, work: Callable[[Transaction], Awaitable[T]], *, timeout: float = 5.0) -> T:
        """Run `work` in one transaction and commit. Raises as `fetch`; the outcome is then unknown."""
        return await self._bounded(lambda connection: _within(connection, work), timeout)

    def _figures(self) -> metrics.Figures:
        stats = self._pool.get_stats()
        idle = stats.get("pool_available", 0)
        yield metrics.db_connections.labels("busy"), stats.get("pool_size", 0) - idle
        yield metrics.db_connections.labels("idle"), idle
        yield metrics.db_waiting, stats.get("requests_waiting", 0)
        yield metrics.db_shortage, float(bool(self.shortage))

    async def _bounded(self, work: Callable[[Connection], Awaitable[T]], timeout: float) -> T:
        deadline = _now() + timeout
        try:
            return await self._run_until_settled(work, deadline)
        except (psycopg.Error, TimeoutError) as error:
            if _now() >= deadline:
                raise DatabaseUnavailable(f"Postgres did not answer within {timeout:g} s") from error
            translated = translate(error)
            if translated is None:
                raise
            self._note_shortage(error, translated)
            raise translated from error

    def _note_shortage(self, error: BaseException, translated: Exception) -> None:
        if is_shortage(error):
            self._shortage = str(translated)
            self._shortage_until = time.monotonic() + SHORTAGE_SECONDS

    async def _run_until_settled(self, work: Callable[[Connection], Awaitable[T]], deadline: float) -> T:
        for _ in range(_MAX_REPEATS):
            try:
                return await self._run_once(work, deadline)
            except psycopg.Error as error:
                if not is_repeatable(error):
                    raise
        raise DatabaseUnavailable(f"a transaction was given up after {_MAX_REPEATS} deadlocks in a row")

    async def _run_once(self, work: Callable[[Connection], Awaitable[T]], deadline: float) -> T:
        connection = await self._connection(deadline)
        cut = asyncio.get_running_loop().call_at(deadline, _cut, connection)
        try:
            return await work(connection)
        except psycopg.errors.ReadOnlySqlTransaction:
            await connection.close()  # to a standby: whoever may be written to is found by a new connection only
            raise
        finally:
            cut.cancel()
            await self._pool.putconn(connection)

    async def _connection(self, deadline: float) -> AsyncConnection[Row]:
        """A connection that is not known to be broken: a fail-over ends all of them, and no caller shall pay for it."""
        while True:
            connection = await self._pool.getconn(timeout=max(deadline - _now(), 0.001))
            if not _ended(connection) and not self._refusal:
                return connection
            await connection.close()
            await self._pool.putconn(connection)
            if self._refusal:
                raise SettingsError(self._refusal)

    async def _configure(self, connection: AsyncConnection[Row]) -> None:
        connection.adapters.register_loader("json", _JsonText)
        arrays.register(connection)
        connection.prepare_threshold = 2
        await connection.set_autocommit(True)
        pid = await self._set_up(connection)
        async with self._looking:  # a second connection must not be handed out before it is known
            if not self._looked:
                self._looked = True
                if await session.is_shared(connection, pid, self._connect, within=CONNECT_SECONDS):
                    self._refusal = session.SHARED

    async def _set_up(self, connection: AsyncConnection[Row]) -> int:
        """Make the settings within a limit, or close the connection; the process id of its session."""
        cut = asyncio.get_running_loop().call_later(CONNECT_SECONDS, _cut, connection)
        try:
            return await session.apply(connection, self._settings)
        except BaseException:
            await connection.close()
            raise
        finally:
            cut.cancel()

    async def _connect(self) -> AsyncConnection[Row]:
        return await AsyncConnection.connect(self._url, **_KWARGS)


_MAX_REPEATS = 8


async def _only(connection: Connection, sql: str, params: Params) -> list[Row]:
    """One statement; outside a transaction it is one by itself, in one round trip."""
    cursor = await connection.execute(sql.encode(), params)
    return await cursor.fetchall()


async def _changed(connection: Connection, sql: str, params: Params) -> int:
    return (await connection.execute(sql.encode(), params)).rowcount


async def _within(connection: Connection, work: Callable[[Transaction], Awaitable[T]]) -> T:
    async with connection.transaction():
        return await work(Transaction(connection))


def _cut(connection: AsyncConnection[Row]) -> None:
    """Break a connection, as its server would: whatever waits on it ends with an error."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)
    except (psycopg.OperationalError, OSError):
        return  # it is broken already


def _ended(connection: AsyncConnection[Row]) -> bool:
    """Whether the server has ended an idle connection: it says nothing else to one that nobody asks anything."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _now() -> float:
    return asyncio.get_running_loop().time()


__all__ = ["Database", "Params", "Row", "Transaction"]
