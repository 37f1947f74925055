"""Postgres frozen, killed, failed over, exhausted or full: answers in time, nobody charged, nothing twice."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import psycopg
import pytest

from headrace.v1 import producer_pb2
from headrace_core.db.errors import DatabaseUnavailable
from headrace_core.db.migrate import migrate
from headrace_core.db.pool import Database, Row, Transaction
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.postgres import Postgres
from headrace_core.tasks.model import TaskRecord
from headrace_core.tasks.publication import of_submitted
from headrace_core.telemetry import metrics
from tests.fixtures.consumers import SAMPLES, ConsumerRig
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, refused, running_producer

ACK_WAIT = 0.5
LEASE = 2 * ACK_WAIT
HANDLERS = f"{SAMPLES},tests.handlers.held"
QUEUE = QueueSettings(name="default", ack_wait=ACK_WAIT)
TOML = f'queues = [{{name = "default", ack_wait = "{int(ACK_WAIT * 1000)}ms", backoff = {{initial = "20ms"}}}}]\n'


@dataclass
class Rig:
    """A Postgres of the test's own, a producer with its relay, and consumers."""

    postgres: Postgres
    producer: Harness
    consumers: ConsumerRig
    release: Path
    """Handlers of kind `held` run until it exists."""

    async def hold(self) -> TaskRecord:
        """A task that runs until `release` exists, and has begun."""
        task = await self.consumers.submit("held", {"release": str(self.release)})
        await self.consumers.has_begun(task)
        return task


@pytest.fixture
async def rig(postgres_server: Postgres, nats_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    url = await postgres_server.create_database("headrace")
    await migrate(url)
    async with running_producer(url, nats_url, queues=[QUEUE]) as producer:
        consumers = ConsumerRig(url, nats_url, tmp_path)
        await consumers.open()
        try:
            for _ in range(2):
                await consumers.consumer(toml=TOML, handlers=HANDLERS)
            yield Rig(postgres_server, producer, consumers, tmp_path / "release")
        finally:
            postgres_server.resume()
            await postgres_server.start()
            await consumers.close()


def takeovers() -> float:
    return float(metrics.takeovers_total._value.get())


def is_uncharged(row: Row) -> bool:
    """Started once, by one holder, at the cost of no budget."""
    return (row["epoch"], row["attempt"], row["failures"], row["crashes"], row["interruptions"]) == (1, 1, 0, 0, 0)


def problems(rig: Rig) -> list[list[str]]:
    """What each service says against its readiness."""
    return [rig.producer.service.problems(), *(consumer.problems() for consumer in rig.consumers.consumers)]


async def lasts(seconds: float) -> None:
    """Let an outage last: its length is what is tested."""
    end = monotonic() + seconds
    await eventually(lambda: monotonic() >= end, within=seconds + 5)


# -- the pool ----------------------------------------------------------------------------------------------------------


async def test_a_call_to_a_frozen_postgres_ends_at_its_limit(postgres_server: Postgres) -> None:
    db = Database(postgres_server.url(), max_size=2)
    await db.open()
    await db.fetch("select 1 as n")
    postgres_server.pause()
    try:
        for _ in range(2):
            began = monotonic()
            with pytest.raises(DatabaseUnavailable, match="did not answer within"):
                await db.fetch("select 1 as n", timeout=0.5)
            assert monotonic() - began < 5, "psycopg's own way out of it takes 10 s more"
    finally:
        postgres_server.resume()
    assert await db.fetch("select 1 as n", timeout=10) == [{"n": 1}]
    await db.close()


async def test_a_cancelled_call_to_a_frozen_postgres_leaves_a_pool_that_works(postgres_server: Postgres) -> None:
    db = Database(postgres_server.url(), max_size=1)
    await db.open()
    await db.fetch("select 1 as n")
    postgres_server.pause()
    call = asyncio.create_task(db.fetch("select 1 as n", timeout=1.0))
    await eventually(lambda: db._pool.get_stats().get("pool_available") == 0)
    call.cancel()
    postgres_server.resume()
    await asyncio.wait({call}, timeout=10)
    assert call.done()
    assert await db.fetch("select 1 as n", timeout=10) == [{"n": 1}]
    await db.close()


async def test_a_failover_that_ends_every_connection_costs_no_caller_anything(database_url: str) -> None:
    db = Database(database_url, max_size=4)
    await db.open()
    await asyncio.gather(*(db.fetch("select pg_sleep(0.1)") for _ in range(4)))
    assert await end_all_connections(database_url) >= 4
    answers = await asyncio.gather(*(db.fetch("select 1 as n") for _ in range(8)))
    assert answers == [[{"n": 1}]] * 8
    await db.close()


async def end_all_connections(database_url: str) -> int:
    """End everybody else's connections, as a fail-over does; how many there were."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        cursor = await connection.execute(
            "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        (count,) = await cursor.fetchone() or (0,)
        return int(count)


async def test_an_exhausted_pool_refuses_in_time_and_recovers(database_url: str) -> None:
    db = Database(database_url, max_size=2)
    await db.open()
    go_on = asyncio.Event()

    async def hold(tx: Transaction) -> None:
        await tx.fetch("select 1 as n")
        await go_on.wait()

    slow = [asyncio.create_task(db.run(hold, timeout=20)) for _ in range(2)]
    await eventually(lambda: db._pool.get_stats().get("pool_size") == 2 and not db._pool.get_stats()["pool_available"])
    began = monotonic()
    with pytest.raises(DatabaseUnavailable):
        await db.fetch("select 1 as n", timeout=0.3)
    assert monotonic() - began < 3
    waiting = asyncio.create_task(db.fetch("select 1 as n", timeout=10))
    go_on.set()
    assert await waiting == [{"n": 1}]
    await asyncio.gather(*slow)
    await db.close()


# -- submitting --------------------------------------------------------------------------------------------------------


async def test_a_submit_to_a_frozen_postgres_is_unavailable_in_time(rig: Rig) -> None:
    await rig.producer.submit(kind="double", payload_json=b'{"n": 1}')
    rig.postgres.pause()
    began = monotonic()
    request = producer_pb2.SubmitTaskRequest(kind="double", payload_json=b'{"n": 2}', idempotency_key="k")
    refusals = await asyncio.gather(*(refused(rig.producer.tasks.SubmitTask(request, timeout=30)) for _ in range(20)))
    assert monotonic() - began < 12
    assert {refusal.code for refusal in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert all(refusal.retry_after for refusal in refusals)
    await eventually(lambda: all(problems(rig)), within=20, what="each says that it is not ready")
    rig.postgres.resume()
    answer = await eventually(
        lambda: rig.producer.tasks.SubmitTask(request, timeout=5), within=20, ignoring=(grpc.aio.AioRpcError,)
    )
    assert json.loads((await ended(rig, answer.task.id))["result"]) == {"doubled": 4, "attempt": 1}
    await eventually(lambda: not any(problems(rig)), within=20)


async def ended(rig: Rig, task_id: str) -> Row:
    async def completed() -> Row | None:
        rows = await rig.consumers.db.fetch(
            "select * from headrace_core.units where task_id = %(id)s and state = 'COMPLETED'", {"id": task_id}
        )
        return rows[0] if rows else None

    row = await eventually(completed, within=20, ignoring=(DatabaseUnavailable,))
    assert row is not None
    return row


# -- running -----------------------------------------------------------------------------------------------------------


async def test_postgres_frozen_for_three_leases_charges_nobody_and_starts_nothing_twice(rig: Rig) -> None:
    before = takeovers()
    tasks = [await rig.hold() for _ in range(4)]
    rig.postgres.pause()
    await lasts(3 * LEASE + 0.5)
    rig.postgres.resume()
    await lasts(2 * LEASE + 1.0)  # whoever took over too early does it now
    for task in tasks:
        row = await rig.consumers.row(task.id)
        assert row["state"] == "PROCESSING"
        assert is_uncharged(row)
    assert takeovers() == before
    rig.release.touch()
    for task in tasks:
        assert await rig.consumers.result(task, within=20) == {"epoch": 1}
        assert is_uncharged(await rig.consumers.row(task.id))


async def test_what_ends_while_postgres_is_frozen_is_settled_afterwards(rig: Rig) -> None:
    task = await rig.hold()
    rig.postgres.pause()
    rig.release.touch()
    await lasts(2 * LEASE)
    rig.postgres.resume()
    assert await rig.consumers.result(task, within=20) == {"epoch": 1}
    assert is_uncharged(await rig.consumers.row(task.id))


async def test_deliveries_met_while_postgres_is_away_cost_no_attempt(rig: Rig) -> None:
    tasks = await rig.consumers.submit_many("double", [{"n": n} for n in range(20)], publish=False)
    rig.postgres.pause()
    await rig.consumers.publish([of_submitted(task) for task in tasks])
    await lasts(4 * ACK_WAIT)
    rig.postgres.resume()
    for n, task in enumerate(tasks):
        assert await rig.consumers.result(task, within=20) == {"doubled": 2 * n, "attempt": 1}
        assert is_uncharged(await rig.consumers.row(task.id))


async def test_a_crash_of_postgres_loses_nothing_and_charges_nobody(rig: Rig) -> None:
    running = await rig.hold()
    waiting = await rig.consumers.submit("double", {"n": 4}, publish=False)
    await rig.postgres.kill()
    with pytest.raises(DatabaseUnavailable):
        await rig.consumers.db.fetch("select 1", timeout=0.5)
    rig.release.touch()
    await lasts(LEASE)
    await rig.postgres.start()
    assert await rig.consumers.result(running, within=20) == {"epoch": 1}
    assert is_uncharged(await rig.consumers.row(running.id))
    assert await rig.consumers.result(waiting, within=20) == {"doubled": 8, "attempt": 1}


async def test_a_failover_under_load_loses_nothing_and_charges_nobody(rig: Rig) -> None:
    running = await rig.hold()

    async def submit(n: int) -> str:
        request = producer_pb2.SubmitTaskRequest(
            kind="double", payload_json=json.dumps({"n": n}).encode(), idempotency_key=f"k{n}"
        )
        answer = await eventually(
            lambda: rig.producer.tasks.SubmitTask(request, timeout=5), within=20, ignoring=(grpc.aio.AioRpcError,)
        )
        return str(answer.task.id)

    submits = [asyncio.create_task(submit(n)) for n in range(50)]
    for _ in range(3):
        await end_all_connections(rig.consumers._url)
        await lasts(0.1)
    ids = await asyncio.gather(*submits)
    assert len(set(ids)) == 50
    for n, task_id in enumerate(ids):
        assert json.loads((await ended(rig, task_id))["result"]) == {"doubled": 2 * n, "attempt": 1}
    rig.release.touch()
    assert await rig.consumers.result(running, within=20) == {"epoch": 1}
    assert is_uncharged(await rig.consumers.row(running.id))


# -- a full disk -------------------------------------------------------------------------------------------------------


def small_disk_prefix(folder: Path) -> list[str]:
    """The command that runs a program with a disk of 160 MB on `folder`, which nobody else sees."""
    mount = 'mount -t tmpfs -o size=160m,mode=0700 tmpfs "$0" && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(folder)]


async def run(program: list[str], within: float) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_full_disk_is_unavailable_said_by_readiness_and_over_when_there_is_room(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a disk of our own needs root and unshare")
    code, _, why = await run([*small_disk_prefix(folder), "true"], 10)
    if code != 0:
        pytest.skip(f"a disk of our own cannot be mounted here: {why.strip()}")
    program = [sys.executable, "-m", "tests.integration.full_disk", str(folder)]
    code, out, err = await run([*small_disk_prefix(folder), *program], 90)
    assert code == 0, err[-3000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["before"] == []
    assert found["refused"] == {"code": "UNAVAILABLE", "reason": "DATABASE_UNAVAILABLE", "retry": True}
    assert "53100" in found["said"]
    assert any("53100" in problem for problem in found["problems"])
    assert found["accepted_afterwards"] is True
    assert found["problems_afterwards"] == []
