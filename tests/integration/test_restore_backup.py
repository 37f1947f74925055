"""Postgres is restored from a base backup while the stream has gone on: docs/backup.md, statement by statement."""

import asyncio
import re
import signal
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from headrace import Client
from headrace.errors import SequenceBeyondEndError, TaskNotFoundError
from headrace_core.bus.connection import Bus
from headrace_core.bus.dead_letters import list_dead_letters
from headrace_core.bus.declaration import StreamNames
from headrace_core.db.pool import Database, Row
from headrace_core.db.restored import STEP, raise_epochs
from tests.fixtures.backups import CopiedPostgres, copied_postgres
from tests.fixtures.fleet import Fleet, fleet
from tests.fixtures.waiting import eventually
from tests.producer_harness import connected_bus

# `batches` runs one at a time: the others wait in the stream.
TOML = """
[[queues]]
name = "default"
ack_wait = "1s"
backoff = { initial = "100ms", maximum = "1s" }
[[queues]]
name = "batches"
ack_wait = "1s"
max_concurrency = 1
"""
WITHIN = 30.0


@dataclass
class World:
    """A Postgres with its backups, the services, and files that handlers wait for and write to."""

    postgres: CopiedPostgres
    fleet: Fleet
    db: Database
    bus: Bus
    folder: Path

    def held(self, name: str) -> dict[str, str]:
        """The payload of a `waits` that runs until `release(name)`."""
        (self.folder / f"{name}.ledger").touch()
        return {"ledger": str(self.folder / f"{name}.ledger"), "release": str(self.folder / f"{name}.release")}

    def release(self, name: str) -> None:
        (self.folder / f"{name}.release").touch()

    def starts(self, name: str) -> list[str]:
        """What the handlers of `name` noted."""
        return (self.folder / f"{name}.ledger").read_text().splitlines()

    async def started(self, name: str, count: int = 1) -> None:
        await eventually(lambda: len(self.starts(name)) >= count, within=WITHIN, what=f"start {count} of {name}")

    async def restore(self, backup: Path, *still_frozen: str) -> None:
        """The operator's course: stop the services, put the backup in place, start them again."""
        others = [name for name in self.fleet.services if name not in still_frozen]
        assert set(await self.fleet.stop(*others)) <= {0, None}
        await self.postgres.put_back(backup)

    async def row(self, task_id: str) -> Row:
        (row,) = await self.db.fetch(
            "select * from headrace_core.units where task_id = %(id)s and unit = -1", {"id": UUID(task_id)}
        )
        return row

    async def ends(self) -> dict[str, list[str]]:
        """The terminal states of every task, in their order."""
        rows = await self.db.fetch(
            "select task_id, array_agg(state order by sequence) as states from headrace_core.events"
            " where terminal group by task_id"
        )
        return {str(row["task_id"]): row["states"] for row in rows}

    async def open_letters(self) -> set[str]:
        rows = await self.db.fetch("select id from headrace_core.dead_letters where resolved_at is null")
        return {row["id"] for row in rows}

    async def entries(self) -> set[str]:
        """What is in the DLQ stream."""
        return {entry.id async for page in list_dead_letters(self.bus, StreamNames()) for entry in page}

    async def metric(self, service: str, line: str) -> float:
        """A counter of a service, by its name with labels as /metrics shows it; 0 without."""
        url = f"http://{self.fleet.services[service].addresses.ops}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture
async def world(nats_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A producer, a status service and two consumers; `consumer-2` is not started."""
    async with (
        copied_postgres(tmp_path) as postgres,
        fleet(postgres.url, nats_url, tmp_path, toml=TOML) as services,
        connected_bus(nats_url) as bus,
    ):
        for name in ("producer", "status", "consumer-1", "consumer-2"):
            services.add(name)
        db = Database(postgres.url, max_size=2)
        await db.open()
        try:
            await services.start("producer", "status", "consumer-1")
            yield World(postgres, services, db, bus, tmp_path)
        finally:
            services.services["consumer-1"].send(signal.SIGCONT)
            await db.close()


async def failed(world: World, client: Client) -> str:
    """A task that has failed; its id."""
    task = await client.submit("hopeless", {"ledger": str(world.folder / "hopeless")})
    await client.wait(task.id, timeout=WITHIN)
    return str(task.id)


async def test_what_the_backup_knows_ends_once_and_what_it_does_not_know_goes_away(world: World) -> None:
    async with world.fleet.client() as client:
        done = await client.submit("add", {"a": 1, "b": 1}, idempotency_key="old")
        await client.result(done.id)
        two_failed = {await failed(world, client), await failed(world, client)}
        running = await client.submit("waits", world.held("running"))
        waiting = [await client.submit("waits", world.held(f"waiting-{n}"), queue="batches") for n in range(3)]
        shards = {"count": 4, "held": [2, 3]} | world.held("shards")
        sharded = await client.submit("squares", shards)
        delayed = await client.submit("add", {"a": 2, "b": 2}, delay=6.0)
        await world.started("running")
        await world.started("waiting-0")
        await eventually(lambda: _done_shards(client, sharded.id, 2), within=WITHIN)

        backup = await world.postgres.copy("backup")

        for name in ("running", "shards", "waiting-0", "waiting-1"):
            world.release(name)
        for task in (running, sharded, *waiting[:2]):
            await client.result(task.id, timeout=WITHIN)
        redriven = sorted(two_failed)[0]
        await client.dead_letters.redrive(ids=[redriven])
        new_failed = await failed(world, client)
        new_done = await client.submit("add", {"a": 3, "b": 3}, idempotency_key="new")
        await client.result(new_done.id)
        new_waiting = [await client.submit("waits", world.held(f"new-{n}"), queue="batches") for n in range(3)]
        await world.started("waiting-2")
        expected = {f"{redriven}-2", f"{new_failed}-1"}
        await eventually(lambda: _holds(world, expected), within=WITHIN, what="the DLQ stream before the restore")

    await world.restore(backup)
    world.release("waiting-2")
    await world.fleet.start("producer", "status")
    republished = "headrace_republished_total"  # what was acknowledged in the lost time
    await eventually(lambda: _counted(world, "producer", republished, 1), within=WITHIN, what=republished)
    await world.fleet.start("consumer-2")

    async with world.fleet.client() as client:
        known = {running.id: {"epoch": 2}, sharded.id: {"sum": 14, "parts": 4}, delayed.id: {"sum": 4}}
        for task_id, result in known.items():
            assert await client.result(task_id, timeout=WITHIN) == result
        for task in [done, *waiting]:
            await client.result(task.id, timeout=WITHIN)
        ends = await world.ends()
        completed = [done.id, running.id, sharded.id, delayed.id, *(task.id for task in waiting)]
        assert ends == {key: ["COMPLETED"] for key in completed} | {key: ["FAILED"] for key in two_failed}
        # Finished shards of the backup are finished (G10): 0 and 1 ran once, 2 and 3 in both times.
        ledger = world.starts("shards")
        assert [ledger.count(f"shard {n}") for n in range(4)] == [1, 1, 2, 2]

        lost = [new_done.id, *(task.id for task in new_waiting)]
        await _assert_unknown(world, client, lost, counted=len(new_waiting))
        assert await world.open_letters() == {f"{task_id}-1" for task_id in two_failed}
        await eventually(lambda: _agrees(world), within=WITHIN, what="the DLQ stream after the restore")
        again = await client.submit("add", {"a": 3, "b": 3}, idempotency_key="new")
        assert again.id != new_done.id
        assert await client.result(again.id, timeout=WITHIN) == {"sum": 6}
        assert (await client.submit("add", {"a": 1, "b": 1}, idempotency_key="old")).id == done.id
        assert all(queue.backlog == 0 for queue in (await client.system_status()).queues)
    assert await world.fleet.stop("consumer-2", "producer", "status") == [0, 0, 0]


async def _assert_unknown(world: World, client: Client, ids: list[str], counted: int) -> None:
    """Their messages are acknowledged and counted, and nobody knows them."""
    gone = 'headrace_claim_refused_total{verdict="gone"}'
    await eventually(lambda: _counted(world, "consumer-2", gone, counted), within=WITHIN)
    for task_id in ids:
        with pytest.raises(TaskNotFoundError):
            await client.get(task_id)


async def _done_shards(client: Client, task_id: str, count: int) -> bool:
    return (await client.get(task_id)).progress.done_shards == count


async def _holds(world: World, expected: set[str]) -> bool:
    return expected <= await world.entries()


async def _agrees(world: World) -> bool:
    return await world.entries() == await world.open_letters()


async def _counted(world: World, service: str, line: str, least: int) -> bool:
    return await world.metric(service, line) >= least


async def test_a_watch_beyond_the_backup_is_told_so(world: World) -> None:
    async with world.fleet.client() as client:
        known = await client.submit("waits", world.held("known"))
        await world.started("known")
        backup = await world.postgres.copy("backup")
        world.release("known")
        await client.result(known.id, timeout=WITHIN)
        last = (await client.get(known.id)).sequence
        unknown = await client.submit("add", {"a": 1, "b": 1})
        await client.result(unknown.id, timeout=WITHIN)

    await world.restore(backup)
    await world.fleet.start("producer", "status")

    async with world.fleet.client() as client:
        with pytest.raises(SequenceBeyondEndError):
            await anext(client.watch(known.id, after_sequence=last))
        with pytest.raises(TaskNotFoundError):
            await anext(client.watch(unknown.id, after_sequence=1))
        await world.fleet.start("consumer-2")
        events = [event async for event in client.watch(known.id)]
        assert events[0].WhichOneof("event") == "snapshot"
        assert await client.result(known.id) == {"epoch": 2}


@pytest.mark.parametrize("raised", [False, True], ids=["as-restored", "epochs-raised"])
async def test_a_handler_from_before_the_restore_can_write_nothing(world: World, raised: bool) -> None:
    """Frozen over the restore, with a lease of the lost time: its epoch is given out again, its holder is not."""
    async with world.fleet.client() as client:
        first = await client.submit("waits", world.held("first"), queue="batches")
        await world.started("first")
        zombie = await client.submit("waits", world.held("zombie"), queue="batches")
        backup = await world.postgres.copy("backup")
        world.release("first")
        await world.started("zombie")
        assert (await world.row(zombie.id))["epoch"] == 1

    world.fleet.services["consumer-1"].send(signal.SIGSTOP)
    await world.restore(backup, "consumer-1")
    if raised:
        assert await raise_epochs(world.postgres.url) == 2
    await world.fleet.start("producer", "status", "consumer-2")

    async with world.fleet.client() as client:
        await world.started("zombie", 2)
        epoch = STEP + 1 if raised else 1
        assert world.starts("zombie") == ["start 1", f"start {epoch}"]
        new = await world.row(zombie.id)
        world.fleet.services["consumer-1"].send(signal.SIGCONT)
        await eventually(lambda: _lost(world), within=WITHIN, what="the zombie has found its lease lost")
        now = await world.row(zombie.id)
        assert (now["state"], now["holder"], now["epoch"]) == ("PROCESSING", new["holder"], epoch)
        world.release("zombie")
        assert await client.result(zombie.id, timeout=WITHIN) == {"epoch": epoch}
        ended = await world.row(zombie.id)
        assert (ended["worker"], ended["failures"], ended["crashes"]) == (new["worker"], 0, 0)
        assert await client.result(first.id, timeout=WITHIN) == {"epoch": STEP + 2 if raised else 2}
        assert await world.ends() == {zombie.id: ["COMPLETED"], first.id: ["COMPLETED"]}


async def _lost(world: World) -> bool:
    return await world.metric("consumer-1", "headrace_renewals_lost_total") >= 1
