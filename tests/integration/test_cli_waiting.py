"""The verbs that prepare an installation: they wait for what is still starting, end when told to, and keep secrets."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.errors import BusError
from headrace_core.bus.topology import apply
from headrace_core.cli.topology import COLUMNS
from headrace_core.db.migrate import available, migrate, missing_versions
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats_cluster import NatsCluster
from tests.fixtures.nats_users import PASSWORD, as_user
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

BOUND = 40
NEWEST = list(available())[-1]
SECRET = "hunter2"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


class Running:
    """A verb as a process, and what it has written to standard error."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[str] = []

    async def line(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr is not None
        async with asyncio.timeout(BOUND):
            self.told.append((await self.process.stderr.readline()).decode())
        return self.told[-1]

    async def end(self) -> Ran:
        async with asyncio.timeout(BOUND):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        assert b"Traceback" not in err
        return Ran(self.process.returncode, out.decode(), "".join(self.told) + err.decode())


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace.cli", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def headrace(*arguments: str) -> Ran:
    async with started(*arguments) as running:
        return await running.end()


async def db(verb: str, url: str, *more: str) -> Ran:
    return await headrace("db", verb, "--database-url", url, *more)


def with_password(url: str) -> str:
    """The same address with a password in it; the tests' Postgres asks for none."""
    return url.replace("postgres@", f"postgres:{SECRET}@")


@pytest.fixture
async def postgres_proxy(empty_database_url: str) -> AsyncIterator[Proxy]:
    port = psycopg.conninfo.conninfo_to_dict(empty_database_url)["port"]
    async with Proxy(int(str(port))) as proxy:
        yield proxy


async def test_verify_accepts_the_schema_of_this_release_and_a_newer_one(database_url: str) -> None:
    current = await db("verify", database_url)
    assert (current.code, current.out, current.err) == (0, f"the schema is current: it has {NEWEST}\n", "")
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("insert into headrace_core.migrations (version) values ('9999_of_tomorrow')")
    assert (await db("verify", database_url)).code == 0


async def test_after_a_restore_the_epochs_that_count_on_are_raised(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        for state, ended in (("PENDING", None), ("COMPLETED", "now()")):
            await connection.execute(
                "insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, state, ended_at,"
                " due_at, epoch, max_attempts, max_crashes, payload)"
                " values (gen_random_uuid(), -1, 'n', 'k', 'default', 2, %s, %s, now(), 7, 3, 3, '{}')",
                (state, ended),
            )
        done = await db("restored", database_url)
        assert (done.code, done.out) == (0, "1 units: epochs raised by 1,000,000\n")
        rows = await (await connection.execute("select state, epoch from headrace_core.units")).fetchall()
    assert sorted(rows) == [("COMPLETED", 7), ("PENDING", 1_000_007)]


async def test_verify_names_what_is_missing_and_what_to_do(database_url: str, empty_database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("delete from headrace_core.migrations where version = %s", (NEWEST,))
    one = await db("verify", database_url)
    assert (one.code, one.out) == (1, "")
    assert one.err == f"headrace db verify: the schema lacks {NEWEST}; run: headrace db migrate\n"
    every = await db("verify", empty_database_url)
    assert every.code == 1
    assert all(version in every.err for version in available())


async def test_verify_waits_until_somebody_has_migrated(empty_database_url: str) -> None:
    async with started("db", "verify", "--database-url", empty_database_url, "--wait", "30") as running:
        assert "waiting for up to 30 s: the schema lacks" in await running.line()
        await migrate(empty_database_url)
        ran = await running.end()
    assert (ran.code, ran.out) == (0, f"the schema is current: it has {NEWEST}\n")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["verify", "migrate"])
async def test_an_unreachable_postgres_is_one_sentence_without_its_password(
    postgres_proxy: Proxy, empty_database_url: str, verb: str
) -> None:
    await postgres_proxy.cut()
    ran = await db(verb, with_password(postgres_proxy.url(empty_database_url)))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"headrace db {verb}: Postgres does not answer")
    assert len(ran.err.splitlines()) == 1
    assert SECRET not in ran.err
    waited = await db(verb, postgres_proxy.url(empty_database_url), "--wait", "0.6")
    assert waited.code == 1
    assert len(waited.err.splitlines()) == 2


@pytest.mark.parametrize("sign", ["@", "/", ":", "%", "?x@"])
async def test_a_url_that_cannot_be_read_is_not_quoted(sign: str) -> None:
    ran = await db("verify", f"postgresql://joe:{SECRET}{sign}{SECRET}@127.0.0.1:1/x")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert SECRET not in ran.err


async def test_migrate_waits_for_a_postgres_that_is_still_starting(
    postgres_proxy: Proxy, empty_database_url: str
) -> None:
    await postgres_proxy.cut()
    url = with_password(postgres_proxy.url(empty_database_url))
    async with started("db", "migrate", "--database-url", url, "--wait", "30") as running:
        assert "waiting for up to 30 s: Postgres does not answer" in await running.line()
        await postgres_proxy.restore()
        ran = await running.end()
    assert ran.code == 0
    assert ran.out.splitlines() == [f"applied {version}" for version in available()]
    assert len(ran.err.splitlines()) == 1
    assert SECRET not in ran.err
    assert await missing_versions(empty_database_url) == []


async def test_sigterm_ends_a_wait_at_once(postgres_proxy: Proxy, empty_database_url: str) -> None:
    postgres_proxy.hold()  # accepted, and silent: the longest a step can take
    url = postgres_proxy.url(empty_database_url)
    async with started("db", "migrate", "--database-url", url, "--wait", "3000") as running:
        await eventually(lambda: postgres_proxy.connections > 0, within=20)
        running.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(2):
            assert await running.process.wait() == 128 + signal.SIGTERM
        await running.process.communicate()


async def test_sigterm_ends_a_migration_that_waits_for_a_lock_and_leaves_nothing(empty_database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database_url) as other:
        await other.execute("select pg_advisory_xact_lock(%s)", (0x48454144,))
        async with started("db", "migrate", "--database-url", empty_database_url) as running:

            async def waits() -> bool:
                cursor = await other.execute("select 1 from pg_locks where locktype = 'advisory' and not granted")
                return await cursor.fetchone() is not None

            await eventually(waits, within=20)
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(2):
                assert await running.process.wait() == 128 + signal.SIGTERM
            await running.process.communicate()
    assert await missing_versions(empty_database_url) == list(available())


async def test_topology_waits_for_a_nats_that_is_still_starting(nats_url: str) -> None:
    secret = PASSWORD.format(user="admin")
    async with Proxy(int(nats_url.rsplit(":", 1)[1])) as proxy:
        await proxy.cut()
        url = as_user(proxy.url(nats_url), "admin")
        refused = await headrace("topology", "apply", "--nats-url", url)
        assert (refused.code, refused.out) == (1, "")
        assert "cannot connect to NATS" in refused.err
        assert secret not in refused.err
        async with started("topology", "apply", "--nats-url", url, "--wait", "30") as running:
            assert "headrace topology apply: waiting for up to 30 s: cannot connect" in await running.line()
            await proxy.restore()
            ran = await running.end()
    assert ran.code == 0
    assert "stream HEADRACE_TASKS: created" in ran.out.splitlines()
    assert len(ran.err.splitlines()) == 1
    assert secret not in ran.err


async def test_copies_on_a_single_server_are_refused_at_once_whatever_the_wait(nats_url: str) -> None:
    ran = await headrace("topology", "apply", "--nats-url", nats_url, "--replicas", "3", "--wait", "600")
    assert ran.code == 1
    assert ran.err == (
        "headrace topology: HEADRACE_TASKS: 3 copies need a cluster of at least 3 servers, and this NATS is a single "
        "server: give --replicas 1, or start a cluster\n"
    )


async def test_copies_of_existing_streams_are_raised_as_far_as_the_cluster_goes(tmp_path: Path) -> None:
    log = StackLog(tmp_path / "nats.log")
    cluster = NatsCluster(tmp_path / "nats", log)
    try:
        await cluster.start()
        await eventually(lambda: _applied(cluster.url), within=30, ignoring=(BusError,), what="streams with one copy")
        raised = await headrace("topology", "apply", "--nats-url", cluster.url, "--replicas", "3", "--wait", "20")
        assert raised.code == 0, raised.err
        assert "stream HEADRACE_TASKS: updated, num_replicas is 1, not 3" in raised.out.splitlines()
        listed = await headrace("topology", "list", "--nats-url", cluster.url)
        columns, *rows = [line.split("\t") for line in listed.out.splitlines()]
        assert columns == list(COLUMNS)
        assert {len(row) for row in rows} == {len(columns)}
        assert ["HEADRACE_TASKS", "headrace.tasks.*.*", "0"] in [row[:3] for row in rows]
        small = await headrace("topology", "apply", "--nats-url", cluster.url, "--replicas", "5", "--wait", "1")
        assert small.code == 1
        assert "waiting for up to 1 s" in small.err.splitlines()[0]
        assert "the NATS cluster has no 5 servers with JetStream" in small.err.splitlines()[-1]
    finally:
        await cluster.stop()
        log.close()


async def _applied(url: str) -> bool:
    bus = Bus(url, name="test")
    try:
        assert await bus.connect(5.0)
        await apply(bus, declared([QueueSettings(name="default")], StreamNames()), replicas=1)
    finally:
        await bus.close()
    return True
