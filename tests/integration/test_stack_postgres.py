"""The local stack's Postgres: data survive, permissions stay, nothing outlives its parent."""

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.stack.postgres import Postgres
from tests.fixtures.waiting import eventually


async def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = await connection.execute(statement.encode())
        return [] if cursor.description is None else await cursor.fetchall()


async def test_data_survive_a_stop_and_a_kill(postgres_server: Postgres) -> None:
    url = await postgres_server.create_database("kept")
    await query(url, "create table t as select 1 as a")
    await postgres_server.stop()
    await postgres_server.start()
    await query(url, "insert into t values (2)")
    await postgres_server.kill()
    await eventually(lambda: start_again(postgres_server), within=20, ignoring=(StackError,))
    assert await query(url, "select a from t order by a") == [(1,), (2,)]


async def start_again(server: Postgres) -> bool:
    # The killed postmaster's backends may hold the shared memory for a moment.
    await server.start()
    return True


async def test_it_is_durable_and_local_only(postgres_server: Postgres) -> None:
    rows = await query(
        postgres_server.url(),
        "select name, setting from pg_settings where name in ('fsync', 'full_page_writes',"
        " 'synchronous_commit', 'listen_addresses', 'unix_socket_directories', 'server_encoding')",
    )
    assert dict(rows) == {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "server_encoding": "UTF8",
    }


async def test_a_private_parent_folder_stays_private(tmp_path: Path) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    log = StackLog(tmp_path / "log")
    deep = parent / ("deep" * 30)  # longer than the path of a Unix socket may be
    deep.mkdir(mode=0o700)
    server = Postgres(deep / "data", log)
    try:
        await server.start()
        assert await query(server.url(), "select 1") == [(1,)]
    finally:
        await server.stop()
        log.close()
    for folder in (parent, deep, deep / "data"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.geteuid()


async def test_a_taken_port_is_named(postgres_server: Postgres, tmp_path: Path) -> None:
    log = StackLog(tmp_path / "second.log")
    second = Postgres(tmp_path / "second", log, port=postgres_server.port)
    try:
        with pytest.raises(StackError, match="could not bind"):
            await second.start()
    finally:
        await second.stop()
        log.close()


async def test_an_interrupted_initdb_is_done_again(tmp_path: Path) -> None:
    log = StackLog(tmp_path / "log")
    server = Postgres(tmp_path / "data", log)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.15):
            await server.start()
    assert not (tmp_path / "data").exists()
    try:
        await server.start()
        assert await query(server.url(), "select 1") == [(1,)]
    finally:
        await server.stop()
        log.close()


PARENT = """
import asyncio, sys
from pathlib import Path
from typing import Any
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.postgres import Postgres

async def main():
    folder = Path(sys.argv[1])
    log = StackLog(folder / "log")
    postgres, nats = Postgres(folder / "data", log), NatsServer(folder / "nats", log)
    await postgres.start()
    await nats.start()
    print(postgres.pid, nats.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
async def test_nothing_survives_a_kill_of_the_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(30):
            pids = [int(word) for word in (await parent.stdout.readline()).split()]
        assert len(pids) == 2
        assert all(is_running(pid) for pid in pids)
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    await eventually(lambda: not any(is_running(pid) for pid in pids), within=15)
