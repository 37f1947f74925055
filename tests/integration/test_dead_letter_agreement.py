"""FAILED in Postgres, an open dead letter, an entry in the DLQ stream: each exactly where the others are (G5)."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest_asyncio

from headrace_core.bus.connection import Bus
from headrace_core.bus.dead_letters import list_dead_letters, publish_dead_letters
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.entries import entry_of
from headrace_core.bus.publisher import Publisher
from headrace_core.bus.topology import apply
from headrace_core.db.pool import Database
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks import dead_letters
from headrace_core.tasks.dead_letters import Chosen
from headrace_core.tasks.model import Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from producer.dead_letter_sync import DeadLetterSync
from tests.factories import a_holder, claimed, row_of, submitted
from tests.fixtures.waiting import eventually
from tests.producer_harness import connected_bus

NAMES = StreamNames()
QUEUE = QueueSettings(name="default")
STREAM = "HEADRACE_DLQ"


@pytest_asyncio.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connected_bus(nats_url) as bus:
        await apply(bus, declared([QUEUE]))
        yield bus


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, max_size=6)
    await database.open()
    yield database
    await database.close()


@pytest_asyncio.fixture
async def replicas(db: Database, bus: Bus) -> AsyncIterator[list[DeadLetterSync]]:
    both = [DeadLetterSync(db, bus, NAMES), DeadLetterSync(db, bus, NAMES)]
    yield both
    for replica in both:
        await replica.close()


@pytest_asyncio.fixture
async def sync(replicas: list[DeadLetterSync]) -> DeadLetterSync:
    return replicas[0]


async def failed(db: Database, task_id: UUID | None = None) -> Chosen:
    """A task that has just failed for good, by its dead letter."""
    task = task_id or (await submitted(db)).id
    unit = await claimed(db, a_holder(), task)
    error = error_json("NON_RETRYABLE", "ValueError", "boom")
    (answer,) = (await settle(db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)])).answers
    assert answer.dead_letter_id is not None
    return Chosen(answer.dead_letter_id, task, unit.generation)


async def entries(bus: Bus) -> list[str]:
    """The ids of the entries in the stream."""
    return sorted([entry.id async for page in list_dead_letters(bus, NAMES) for entry in page])


async def purge(bus: Bus, letter: Chosen) -> None:
    """What somebody does by hand."""
    await bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", {"filter": NAMES.dead_letter_subject("default", letter.id)})


async def publish_late(db: Database, bus: Bus, letter: Chosen) -> None:
    """What a consumer does whose own publication was under way for long."""
    publisher = Publisher(bus)
    try:
        found = (await dead_letters.find_letters(db, [letter.id], []))[letter.id]
        (result,) = await publish_dead_letters(bus, publisher, NAMES, [entry_of(found)])
        assert result.accepted, result
    finally:
        await publisher.close()


async def test_a_stream_made_anew_gets_every_open_entry_again(
    db: Database, bus: Bus, replicas: list[DeadLetterSync]
) -> None:
    letters = [await failed(db) for _ in range(3)]
    await asyncio.gather(*(replica.sync() for replica in replicas))
    assert await entries(bus) == sorted(letter.id for letter in letters)
    await bus.request(f"$JS.API.STREAM.DELETE.{STREAM}")
    await apply(bus, declared([QUEUE]))
    await asyncio.gather(*(replica.sync() for replica in replicas))
    assert await entries(bus) == sorted(letter.id for letter in letters)


async def test_entries_deleted_by_hand_come_back_and_foreign_ones_go(
    db: Database, bus: Bus, sync: DeadLetterSync
) -> None:
    kept, deleted = await failed(db), await failed(db)
    await sync.sync()
    await purge(bus, deleted)
    await bus.send(NAMES.dead_letter_subject("default", "foreign"), b"{}")
    await bus.flush()
    assert "foreign" in await entries(bus)
    await sync.compare()
    await sync.sync()
    assert await entries(bus) == sorted([kept.id, deleted.id])


async def test_a_difference_is_noticed_by_itself_within_half_a_minute(
    db: Database, bus: Bus, sync: DeadLetterSync
) -> None:
    letters = [await failed(db) for _ in range(2)]
    await sync.sync()
    await bus.request(f"$JS.API.STREAM.PURGE.{STREAM}", {})

    async def agree() -> bool:
        await sync.sync()
        return await entries(bus) == sorted(letter.id for letter in letters)

    await eventually(agree, within=30)


async def test_an_entry_published_after_its_redrive_is_removed(db: Database, bus: Bus, sync: DeadLetterSync) -> None:
    letter = await failed(db)
    await dead_letters.redrive(db, [letter])
    await sync.sync()
    assert await entries(bus) == []
    await publish_late(db, bus, letter)
    assert await entries(bus) == [letter.id]
    await sync.compare()
    assert await entries(bus) == []


async def test_a_redrive_that_fails_again_at_once_leaves_the_second_entry_only(
    db: Database, bus: Bus, sync: DeadLetterSync
) -> None:
    first = await failed(db)
    await dead_letters.redrive(db, [first])
    assert first.task_id is not None
    second = await failed(db, first.task_id)
    await sync.sync()
    await sync.compare()
    assert await entries(bus) == [second.id]
    assert (await row_of(db, first.task_id))["generation"] == 2


async def test_a_discard_before_the_publication_leaves_no_entry(db: Database, bus: Bus, sync: DeadLetterSync) -> None:
    letter = await failed(db)
    await dead_letters.discard(db, [letter])
    await sync.sync()
    await sync.compare()
    assert await entries(bus) == []


async def test_an_entry_published_again_is_there_once(db: Database, bus: Bus, sync: DeadLetterSync) -> None:
    letter = await failed(db)
    await sync.sync()
    await publish_late(db, bus, letter)
    await dead_letters.unmark_published(db, [letter.id])
    await sync.sync()
    assert await dead_letters.list_published(db, "", 10) == [letter.id]
    assert await entries(bus) == [letter.id]


async def test_a_full_stream_keeps_nothing_from_coming_later(db: Database, bus: Bus, sync: DeadLetterSync) -> None:
    first = await failed(db)
    await sync.sync()
    info = (await bus.request(f"$JS.API.STREAM.INFO.{STREAM}"))["config"]
    await bus.request(f"$JS.API.STREAM.UPDATE.{STREAM}", {**info, "max_msgs": 1})
    second = await failed(db)
    await sync.sync()
    assert await entries(bus) == [first.id]
    assert await dead_letters.list_published(db, "", 10) == [first.id]
    await bus.request(f"$JS.API.STREAM.UPDATE.{STREAM}", {**info, "max_msgs": 10})
    await sync.sync()
    assert await entries(bus) == sorted([first.id, second.id])


async def test_what_failed_while_the_broker_was_away_is_there_after_its_return(
    db: Database, bus: Bus, sync: DeadLetterSync, nats_server: NatsServer
) -> None:
    await nats_server.kill()
    await eventually(lambda: not bus.connected)
    letter = await failed(db)
    await sync.sync()
    await nats_server.start()

    async def arrived() -> bool:
        await sync.sync()
        return bus.jetstream and await entries(bus) == [letter.id]

    await eventually(arrived, within=20)


async def test_two_redrives_of_the_same_letters_at_once_redrive_each_once(db: Database) -> None:
    letters = [await failed(db) for _ in range(20)]
    both = await asyncio.gather(
        dead_letters.redrive(db, letters, strict=False),
        dead_letters.redrive(db, list(reversed(letters)), strict=False),
    )
    assert sum(len(answer.tasks) for answer in both) == 20
    rows = [await row_of(db, letter.task_id) for letter in letters if letter.task_id]
    assert [row["generation"] for row in rows] == [2] * 20
