"""The reconciler on a real broker: what the stream lost comes back, what it will never deliver goes, all else stays."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import pytest_asyncio

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import ADVISORY_DURABLE, StreamNames, declared
from headrace_core.bus.task_stream import read_message
from headrace_core.bus.topology import apply
from headrace_core.db.pool import Database
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.model import Complete, TaskRecord
from headrace_core.tasks.publication import of_submitted
from headrace_core.tasks.queues import declare
from headrace_core.tasks.reconciliation import create_missing_merges
from headrace_core.tasks.settle import settle
from headrace_core.telemetry import metrics
from producer.dead_messages import DeadMessages
from producer.publishing import TaskPublisher
from producer.queue_loads import QueueLoads
from producer.reconciler import Reconciler
from tests.factories import a_holder, claimed, planned, row_of, submitted
from tests.fixtures.waiting import eventually
from tests.producer_harness import connected_bus

NAMES = StreamNames()
# A message is given up 1.5 s after its first delivery.
QUEUE = QueueSettings(name="default", ack_wait=0.5)


class Replica:
    """What one producer reconciles with, its rounds in the hands of the test."""

    def __init__(self, db: Database, bus: Bus) -> None:
        self.db = db
        self.bus = bus
        self.publisher = TaskPublisher(db, bus, NAMES)
        identity = self.publisher.identity
        assert identity is not None
        self.loads = QueueLoads(db)
        self.dead = DeadMessages(db, bus, NAMES, self.publisher, identity)
        self.reconciler = Reconciler(db, bus, NAMES, self.publisher, self.loads, self.dead, identity)
        self.supervisor = Supervisor()

    async def start(self) -> None:
        await self.loads.refresh()
        self.supervisor.spawn("publish", self.publisher.publish_forever)
        self.supervisor.spawn("mark", self.publisher.mark_forever)

    async def stop(self) -> None:
        await self.supervisor.stop()
        await self.publisher.close()


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connected_bus(nats_url) as bus:
        await apply(bus, declared([QUEUE]))
        yield bus


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, max_size=6)
    await database.open()
    await declare(database, [QUEUE])
    yield database
    await database.close()


@pytest_asyncio.fixture
async def replicas(db: Database, bus: Bus) -> AsyncIterator[list[Replica]]:
    both = [Replica(db, bus), Replica(db, bus)]
    for replica in both:
        await replica.start()
    yield both
    for replica in both:
        await replica.stop()


@pytest_asyncio.fixture
async def replica(replicas: list[Replica]) -> Replica:
    return replicas[0]


async def waiting(replica: Replica, count: int = 1) -> list[TaskRecord]:
    """Tasks that are in the stream and noted so."""
    tasks = [await submitted(replica.db) for _ in range(count)]
    replica.publisher.offer([of_submitted(task) for task in tasks])
    await are_noted(replica, tasks)
    return tasks


async def are_noted(replica: Replica, tasks: Sequence[TaskRecord]) -> None:
    async def noted() -> bool:
        rows = [await row_of(replica.db, task.id) for task in tasks]
        return all(row["published_in"] is not None for row in rows)

    await eventually(noted, what="the notes of the publications")


async def dispatches(replica: Replica, tasks: Sequence[TaskRecord]) -> list[int]:
    return [(await row_of(replica.db, task.id))["dispatch"] for task in tasks]


async def in_stream(bus: Bus) -> list[UUID]:
    """The tasks whose messages the stream has."""
    state = (await bus.request("$JS.API.STREAM.INFO.HEADRACE_TASKS"))["state"]
    found = []
    for sequence in range(state["first_seq"], state["last_seq"] + 1):
        message = await stored(bus, sequence)
        if message is not None:
            found.append(UUID(message["task"]))
    return found


async def stored(bus: Bus, sequence: int) -> Any:
    message = await read_message(bus, NAMES.tasks, sequence)
    return None if message is None else json.loads(message.body)


async def pull(bus: Bus, count: int) -> list[str]:
    """Take deliveries without answering them; their reply subjects."""
    replies: list[str] = []
    inbox = bus.new_inbox()
    subscription = await bus.subscribe(f"{inbox}.*", lambda message: replies.append(message.reply))
    body = json.dumps({"batch": count, "expires": 1_000_000_000}).encode()
    await bus.send("$JS.API.CONSUMER.MSG.NEXT.HEADRACE_TASKS.default-normal", body, reply=f"{inbox}.1")
    await eventually(lambda: len(replies) >= count, what="the deliveries")
    await subscription.unsubscribe()
    return replies


async def exhaust(bus: Bus) -> None:
    """Take one message until the broker has given it up."""
    inbox = bus.new_inbox()
    subscription = await bus.subscribe(f"{inbox}.*", lambda _message: None)

    async def given_up() -> bool:
        info = await bus.request("$JS.API.CONSUMER.INFO.HEADRACE_TASKS.default-normal")
        if info["num_ack_pending"] == 0 and info["delivered"]["stream_seq"]:
            return True
        # An open request is what makes the server look for what is overdue.
        body = json.dumps({"batch": 1, "expires": 500_000_000}).encode()
        await bus.send("$JS.API.CONSUMER.MSG.NEXT.HEADRACE_TASKS.default-normal", body, reply=f"{inbox}.1")
        return False

    await eventually(given_up, within=15, what="the last delivery's end")
    await subscription.unsubscribe()


async def test_a_stream_made_anew_gets_everything_that_waits_once_from_two_replicas(replicas: list[Replica]) -> None:
    one, other = replicas
    tasks = await waiting(one, 25)
    await one.bus.request("$JS.API.STREAM.DELETE.HEADRACE_TASKS")
    await apply(one.bus, declared([QUEUE]))
    await asyncio.gather(one.reconciler.reconcile(), other.reconciler.reconcile())
    await are_noted(one, tasks)
    assert await dispatches(one, tasks) == [2] * 25
    assert sorted(await in_stream(one.bus)) == sorted(task.id for task in tasks)


async def test_with_nothing_lost_nothing_is_published(replica: Replica) -> None:
    tasks = await waiting(replica, 30)
    before = metrics.republished_total._value.get()
    for _ in range(5):
        await replica.reconciler.reconcile()
    assert await dispatches(replica, tasks) == [1] * 30
    assert metrics.republished_total._value.get() == before


async def test_a_confirmation_of_a_stream_that_is_no_more_is_not_noted(replica: Replica) -> None:
    await waiting(replica)
    (task,) = [await submitted(replica.db)]
    await replica.supervisor.stop()  # what follows is done by hand, in an order that the tasks could not promise
    publisher = replica.publisher
    publisher.offer([of_submitted(task)])
    assert publisher._publisher is not None
    await publisher._publish(publisher._publisher, publisher._next_batch())
    await replica.bus.request("$JS.API.STREAM.DELETE.HEADRACE_TASKS")
    await apply(replica.bus, declared([QUEUE]))
    await publisher._mark(0.0)
    assert (await row_of(replica.db, task.id))["published_in"] is None


async def test_a_message_deleted_by_hand_is_published_again_when_its_turn_has_passed(replica: Replica) -> None:
    lost, next_one = await waiting(replica, 2)
    await replica.bus.request("$JS.API.STREAM.MSG.DELETE.HEADRACE_TASKS", {"seq": 1})
    await replica.reconciler.reconcile()
    assert await dispatches(replica, [lost, next_one]) == [1 + 1, 1]
    await are_noted(replica, [lost])
    assert await in_stream(replica.bus) == [next_one.id, lost.id]


async def test_a_message_deleted_in_the_middle_comes_back_when_the_durable_has_passed_it(replica: Replica) -> None:
    first, lost, last = await waiting(replica, 3)
    await replica.bus.request("$JS.API.STREAM.MSG.DELETE.HEADRACE_TASKS", {"seq": 2})
    for task in (first, last):
        unit = await claimed(replica.db, a_holder(), task.id)
        await settle(replica.db, [Complete(unit.lease, b"1")])
        (reply,) = await pull(replica.bus, 1)
        await replica.bus.send(reply, b"+ACK")
    await replica.bus.flush()

    async def published_again() -> bool:
        await replica.reconciler.reconcile()
        return await dispatches(replica, [lost]) == [2]

    await eventually(published_again)


async def test_a_purged_stream_gets_everything_again(replica: Replica) -> None:
    tasks = await waiting(replica, 5)
    await replica.bus.request("$JS.API.STREAM.PURGE.HEADRACE_TASKS")
    await replica.reconciler.reconcile()
    await are_noted(replica, tasks)
    assert await dispatches(replica, tasks) == [2] * 5


async def test_what_was_delivered_in_vain_comes_back_without_any_advisory(replica: Replica) -> None:
    await replica.bus.request("$JS.API.STREAM.DELETE.HEADRACE_ADVISORIES")
    (task,) = await waiting(replica)
    await exhaust(replica.bus)
    await _reconcile_until_only_the_second_dispatch_is_left(replica, task)


async def test_what_was_delivered_in_vain_comes_back_by_its_advisory_alone(replica: Replica) -> None:
    (task,) = await waiting(replica)
    await exhaust(replica.bus)
    replica.supervisor.spawn("advisories", replica.dead.follow_advisories)
    await _only_the_second_dispatch_is_left(replica, task)


async def _reconcile_until_only_the_second_dispatch_is_left(replica: Replica, task: TaskRecord) -> None:
    async def settled() -> bool:
        await replica.reconciler.reconcile()
        return await _dispatches_in_stream(replica.bus) == [2]

    await eventually(settled, what="the removal of the dead message")
    assert await dispatches(replica, [task]) == [2]


async def _only_the_second_dispatch_is_left(replica: Replica, task: TaskRecord) -> None:
    async def settled() -> bool:
        return await _dispatches_in_stream(replica.bus) == [2]

    await eventually(settled, what="the removal of the dead message")
    assert await dispatches(replica, [task]) == [2]


async def _dispatches_in_stream(bus: Bus) -> list[int]:
    state = (await bus.request("$JS.API.STREAM.INFO.HEADRACE_TASKS"))["state"]
    messages = [await stored(bus, sequence) for sequence in range(state["first_seq"], state["last_seq"] + 1)]
    return [message["dispatch"] for message in messages if message is not None]


async def test_a_dead_message_behind_one_that_runs_for_long_is_found_by_patience(replica: Replica) -> None:
    await replica.bus.request("$JS.API.STREAM.DELETE.HEADRACE_ADVISORIES")
    running, dead = await waiting(replica, 2)
    await claimed(replica.db, a_holder(), running.id)
    held, _ = await pull(replica.bus, 2)

    async def published_again() -> bool:
        await replica.bus.send(held, b"+WPI")
        await replica.reconciler.reconcile()
        return await dispatches(replica, [dead]) == [2]

    await eventually(published_again, within=20)
    assert (await row_of(replica.db, running.id))["dispatch"] == 1


async def test_the_dead_message_of_a_finished_task_is_removed(replica: Replica) -> None:
    (task,) = await waiting(replica)
    await exhaust(replica.bus)
    unit = await claimed(replica.db, a_holder(), task.id)
    await settle(replica.db, [Complete(unit.lease, b"1")])

    async def removed() -> bool:
        await replica.reconciler.reconcile()
        return await in_stream(replica.bus) == []

    await eventually(removed)
    assert (await row_of(replica.db, task.id))["state"] == "COMPLETED"


async def test_a_dead_message_that_is_no_task_becomes_one_dead_letter(replicas: list[Replica]) -> None:
    one, other = replicas
    await one.bus.send("headrace.tasks.default.normal", b"hello")
    await exhaust(one.bus)
    for replica in replicas:
        replica.supervisor.spawn("advisories", replica.dead.follow_advisories)

    async def removed() -> bool:
        await asyncio.gather(one.reconciler.reconcile(), other.reconciler.reconcile())
        info = await one.bus.request("$JS.API.STREAM.INFO.HEADRACE_TASKS")
        return int(info["state"]["messages"]) == 0

    await eventually(removed)
    rows = await one.db.fetch("select reason, queue, message from headrace_core.dead_letters")
    assert [(row["reason"], row["queue"], row["message"]) for row in rows] == [
        ("UNPARSEABLE_MESSAGE", "default", b"hello")
    ]


async def test_an_advisory_of_the_stream_before_harms_no_task_at_the_same_number(replica: Replica) -> None:
    await waiting(replica)
    await exhaust(replica.bus)
    await replica.bus.request("$JS.API.STREAM.DELETE.HEADRACE_TASKS")
    await apply(replica.bus, declared([QUEUE]))
    await replica.reconciler.reconcile()
    (healthy,) = await waiting(replica)
    before = await in_stream(replica.bus)
    replica.supervisor.spawn("advisories", replica.dead.follow_advisories)

    async def heeded() -> bool:
        info = await replica.bus.request(f"$JS.API.CONSUMER.INFO.HEADRACE_ADVISORIES.{ADVISORY_DURABLE}")
        return bool(info["ack_floor"]["stream_seq"]) and info["num_pending"] == 0

    await eventually(heeded)
    assert await in_stream(replica.bus) == before
    assert await dispatches(replica, [healthy]) == [1]


async def test_a_missing_merge_is_created_once(db: Database) -> None:
    task = await planned(db, a_holder(), 1)
    assert await create_missing_merges(db, 10) == []
    unit = await claimed(db, a_holder(), task.id, 0)
    await settle(db, [Complete(unit.lease, b"1")])
    assert await create_missing_merges(db, 10) == []
    await db.run(lambda tx: tx.execute("delete from headrace_core.units where unit = -2"))
    made = await asyncio.gather(create_missing_merges(db, 10), create_missing_merges(db, 10))
    assert sorted(len(publications) for publications in made) == [0, 1]
    assert (await row_of(db, task.id, -2))["state"] == "PENDING"


async def test_a_round_reads_a_handful_of_rows_however_many_wait(replica: Replica) -> None:
    await waiting(replica, 3)
    await replica.db.run(
        lambda tx: tx.execute(
            "insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, due_at,"
            " max_attempts, max_crashes, published_in, published_seq)"
            " select gen_random_uuid(), -1, 'default', 'plain', 'default', 2, '{}', now(), 3, 3, 1, 1000 + n"
            " from generate_series(1, 30000) n"
        ),
    )
    await replica.db.run(lambda tx: tx.execute("analyze headrace_core.units"))
    read_before = await _rows_read(replica.db)
    for _ in range(10):
        await replica.reconciler.reconcile()

    assert await _rows_read(replica.db) - read_before < 1000


async def _rows_read(db: Database) -> int:
    """Rows that this database's backends have fetched from the table of units, so far."""
    await db.run(lambda tx: tx.execute("select pg_stat_force_next_flush()"))
    (row,) = await db.fetch(
        "select seq_tup_read + coalesce(idx_tup_fetch, 0) as n from pg_stat_user_tables where relname = 'units'"
    )
    return int(row["n"])
