"""Wake-ups, cancellations and the dead letter stream."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from headrace_core.bus.broker_status import look
from headrace_core.bus.connection import Bus
from headrace_core.bus.control import publish_cancel, subscribe_cancel
from headrace_core.bus.dead_letters import (
    DeadLetter,
    publish_dead_letters,
    read_dead_letter,
    remove_dead_letter,
)
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.publisher import Publisher
from headrace_core.bus.topology import apply
from headrace_core.bus.wakes import WakeHint, WakePublisher, subscribe_wakes
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks.model import Wake
from tests.fixtures.waiting import eventually

NAMES = StreamNames()


@dataclass(frozen=True)
class Queue:
    name: str = "default"
    ack_wait: float = 5.0


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url, name="test")
    assert await bus.connect(5.0)
    await apply(bus, declared([Queue()]))
    yield bus
    await bus.close()


@pytest.fixture
async def publisher(bus: Bus) -> AsyncIterator[Publisher]:
    publisher = Publisher(bus)
    yield publisher
    await publisher.close()


async def test_wakes_arrive_packed(bus: Bus) -> None:
    received: list[list[WakeHint]] = []
    await subscribe_wakes(bus, NAMES, received.append)
    wakes = [Wake(uuid.uuid4(), number) for number in range(2500)]
    await WakePublisher(bus, NAMES).publish(wakes)
    await eventually(lambda: sum(map(len, received)) == 2500)
    assert [len(part) for part in received] == [1000, 1000, 500]
    assert [tuple(hint) for part in received for hint in part] == [(wake.task_id, wake.sequence) for wake in wakes]


async def test_wakes_without_a_broker_are_counted(nats_server: NatsServer, bus: Bus) -> None:
    publisher = WakePublisher(bus, NAMES)
    await publisher.publish([])
    await nats_server.kill()
    await eventually(lambda: not bus.connected)
    await publisher.publish([Wake(uuid.uuid4(), 1)] * 3)
    assert publisher.dropped == 3
    assert not await publish_cancel(bus, NAMES, [uuid.uuid4()])


async def test_cancellations_reach_every_consumer(bus: Bus, nats_url: str) -> None:
    other = Bus(nats_url, name="other")
    await other.connect(5.0)
    here: list[uuid.UUID] = []
    there: list[uuid.UUID] = []
    await subscribe_cancel(bus, NAMES, here.extend)
    await subscribe_cancel(other, NAMES, there.extend)
    await other.flush()
    ids = [uuid.uuid4() for _ in range(1500)]
    assert await publish_cancel(bus, NAMES, ids)
    await eventually(lambda: here == ids and there == ids)
    await other.close()


def letter(name: str) -> DeadLetter:
    return DeadLetter(
        id=name,
        queue="default",
        reason="HANDLER_ERROR",
        error=b'{"reason": "HANDLER_ERROR", "type": "ValueError", "message": "two\\nlines \\u00e9 \\ud800"}',
        attempts=3,
        origin="0197-task",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        kind="echo",
        namespace="team",
        task_id=uuid.UUID(int=7),
        generation=2,
    )


async def test_one_dead_letter_one_entry(bus: Bus, publisher: Publisher) -> None:
    letters = [letter("a-1"), letter("a-2")]
    results = await publish_dead_letters(bus, publisher, NAMES, letters)
    assert [result.outcome for result in results] == ["stored", "stored"]
    results = await publish_dead_letters(bus, publisher, NAMES, letters)
    assert [result.outcome for result in results] == ["duplicate", "duplicate"]
    assert (await look(bus, NAMES)).dead_letters == 2


async def test_a_full_stream_is_not_mistaken_for_an_entry(bus: Bus, publisher: Publisher) -> None:
    config = (await bus.request("$JS.API.STREAM.INFO.HEADRACE_DLQ"))["config"]
    await bus.request("$JS.API.STREAM.UPDATE.HEADRACE_DLQ", {**config, "max_msgs": 1})
    results = await publish_dead_letters(bus, publisher, NAMES, [letter("a-1"), letter("a-2")])
    assert [result.outcome for result in results] == ["stored", "full"]


async def test_an_entry_says_what_happened(bus: Bus, publisher: Publisher) -> None:
    await publish_dead_letters(bus, publisher, NAMES, [letter("a-1")])
    entry = await read_dead_letter(bus, NAMES, "default", "a-1")
    assert entry is not None
    assert entry.headers["Headrace-Reason"] == "HANDLER_ERROR"
    assert entry.headers["Headrace-Error"] == "ValueError: two lines ? ?"
    assert entry.headers["Headrace-Attempts"] == "3"
    assert entry.headers["Headrace-Origin"] == "0197-task"
    # An id would make the stream refuse, for a while, to have an entry again that was removed.
    assert "Nats-Msg-Id" not in entry.headers
    assert entry.body["error"]["type"] == "ValueError"
    assert {key: value for key, value in entry.body.items() if key != "error"} == {
        "id": "a-1",
        "task": str(uuid.UUID(int=7)),
        "generation": 2,
        "queue": "default",
        "kind": "echo",
        "namespace": "team",
        "reason": "HANDLER_ERROR",
        "created": "2026-01-02T00:00:00+00:00",
    }


@pytest.mark.parametrize("error", [None, b"not JSON", b"\xff\xfe", b"\x01" * 500_000, b'"' * 500_000])
async def test_any_error_fits(bus: Bus, publisher: Publisher, error: bytes | None) -> None:
    odd = replace(letter("a-1"), error=error, task_id=None, generation=None)
    results = await publish_dead_letters(bus, publisher, NAMES, [odd])
    assert results[0].outcome == "stored", results[0]
    entry = await read_dead_letter(bus, NAMES, "default", "a-1")
    assert entry is not None
    assert entry.body["task"] is None


async def test_removing_leaves_the_others(bus: Bus, publisher: Publisher) -> None:
    await publish_dead_letters(bus, publisher, NAMES, [letter("a-1"), letter("a-2")])
    assert await remove_dead_letter(bus, NAMES, "default", "a-1")
    assert not await remove_dead_letter(bus, NAMES, "default", "a-1")
    assert await read_dead_letter(bus, NAMES, "default", "a-1") is None
    assert await read_dead_letter(bus, NAMES, "default", "a-2") is not None
    await bus.request("$JS.API.STREAM.DELETE.HEADRACE_DLQ")
    assert not await remove_dead_letter(bus, NAMES, "default", "a-2")
