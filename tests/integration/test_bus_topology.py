"""Streams and durables: made as declared, damage found and said."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from headrace_core.bus.broker_status import QueueView, look
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.errors import BusUnavailable, TopologyError
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.topology import apply, apply_topology, list_topology, verify, verify_topology
from headrace_core.stack.nats import NatsServer

NAMES = StreamNames()


@dataclass(frozen=True)
class Queue:
    name: str
    ack_wait: float = 5.0


QUEUES = [Queue("default"), Queue("gpu-high", ack_wait=0.5)]


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus(nats_url, name="test")
    assert await bus.connect(5.0)
    yield bus
    await bus.close()


async def test_apply_is_idempotent(bus: Bus, nats_url: str) -> None:
    changes = await apply(bus, declared(QUEUES))
    assert len(changes) == 3 + 8 + 1
    assert changes[0] == "stream HEADRACE_TASKS: created"
    assert await apply(bus, declared(QUEUES)) == []
    assert await verify(bus, declared(QUEUES)) == []
    assert await apply(bus, declared(QUEUES), replicas=1) == []
    assert await apply_topology(nats_url, NAMES, QUEUES) == []
    assert await verify_topology(nats_url, NAMES, QUEUES) == []


async def test_max_deliver_reads_three(bus: Bus) -> None:
    await apply(bus, declared(QUEUES))
    info = await bus.request("$JS.API.CONSUMER.INFO.HEADRACE_TASKS.default-normal")
    assert info["config"]["max_deliver"] == 3
    assert info["config"]["max_ack_pending"] == 20_000
    assert info["config"]["ack_wait"] == 5_000_000_000
    assert info["config"]["ack_policy"] == "explicit"
    assert info["config"]["filter_subject"] == "headrace.tasks.default.normal"


async def test_the_streams_are_as_promised(bus: Bus) -> None:
    await apply(bus, declared(QUEUES))
    configs = {
        name: (await bus.request(f"$JS.API.STREAM.INFO.{name}"))["config"]
        for name in (NAMES.tasks, NAMES.dead_letters, NAMES.advisories)
    }
    tasks, letters, advisories = configs.values()
    assert (tasks["retention"], tasks["discard"], tasks["storage"]) == ("workqueue", "new", "file")
    assert (tasks["max_msgs_per_subject"], tasks["discard_new_per_subject"]) == (100_000, True)
    assert tasks["duplicate_window"] == 10_000_000_000
    assert (letters["retention"], letters["discard"], letters["max_age"]) == ("limits", "new", 0)
    assert (letters["max_msgs_per_subject"], letters["discard_new_per_subject"]) == (1, True)
    assert (advisories["retention"], advisories["discard"]) == ("workqueue", "old")
    assert all(config["max_bytes"] > 0 and config["max_msgs"] > 0 for config in configs.values())


async def test_each_kind_of_damage_is_found_and_repaired(bus: Bus) -> None:
    declaration = declared(QUEUES)
    await apply(bus, declaration)
    tasks = (await bus.request("$JS.API.STREAM.INFO.HEADRACE_TASKS"))["config"]
    await bus.request("$JS.API.STREAM.UPDATE.HEADRACE_TASKS", {**tasks, "max_msgs": 7})
    await bus.request("$JS.API.CONSUMER.DELETE.HEADRACE_TASKS.default-low")
    low = (await bus.request("$JS.API.CONSUMER.INFO.HEADRACE_TASKS.gpu-high-low"))["config"]
    await bus.request(
        "$JS.API.CONSUMER.DURABLE.CREATE.HEADRACE_TASKS.gpu-high-low",
        {"stream_name": "HEADRACE_TASKS", "config": {**low, "max_deliver": 5, "ack_wait": 30_000_000_000}},
    )
    await bus.request("$JS.API.STREAM.DELETE.HEADRACE_DLQ")
    expected = {
        "stream HEADRACE_TASKS: max_msgs is 7, not 4000000",
        "stream HEADRACE_DLQ is missing",
        "durable default-low of stream HEADRACE_TASKS is missing",
        "durable gpu-high-low: max_deliver is 5, not 3",
        "durable gpu-high-low: ack_wait is 30 s, not 0.5 s",
    }
    assert set(await verify(bus, declaration)) == expected
    changes = await apply(bus, declaration)
    assert len(changes) == len(expected)
    assert await verify(bus, declaration) == []


async def test_an_empty_broker_misses_everything(bus: Bus) -> None:
    assert len(await verify(bus, declared(QUEUES))) == 3 + 8 + 1


async def test_what_cannot_be_changed_is_refused_in_words(bus: Bus) -> None:
    await bus.request(
        "$JS.API.STREAM.CREATE.HEADRACE_TASKS",
        {"name": "HEADRACE_TASKS", "subjects": ["headrace.tasks.*.*"], "retention": "limits", "storage": "file"},
    )
    with pytest.raises(TopologyError, match="retention is limits, not workqueue"):
        await apply(bus, declared(QUEUES))


async def test_somebody_elses_subject_is_refused_in_words(bus: Bus) -> None:
    await bus.request("$JS.API.STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["headrace.>"]})
    with pytest.raises(TopologyError, match="overlap"):
        await apply(bus, declared(QUEUES))


async def test_more_consumers_than_a_page(bus: Bus) -> None:
    queues = [Queue(f"q{number}") for number in range(70)]
    await apply(bus, declared(queues))
    assert await verify(bus, declared(queues)) == []


async def test_list_and_look_count(bus: Bus, nats_url: str) -> None:
    assert (await look(bus, NAMES)).problem == "missing: HEADRACE_TASKS, HEADRACE_DLQ; run: headrace topology apply"
    await apply(bus, declared(QUEUES))
    publisher = Publisher(bus)
    await publisher.publish([OutgoingMessage("headrace.tasks.gpu-high.resume", b"{}") for _ in range(3)])
    await publisher.publish([OutgoingMessage("headrace.tasks.gpu-high.low", b"{}")])
    await publisher.close()
    view = await look(bus, NAMES)
    assert (view.connected, view.jetstream, view.task_stream, view.dead_letter_stream) == (True, True, True, True)
    assert view.queues == {"default": QueueView(), "gpu-high": QueueView(pending=4)}
    assert view.problem == ""
    rows = {row.durable: row for row in await list_topology(nats_url, NAMES) if row.durable}
    assert rows["gpu-high-resume"].pending == 3
    assert rows["gpu-high-resume"].messages == 4
    assert rows["gpu-high-resume"].subjects == ("headrace.tasks.*.*",)


async def test_without_a_server_they_say_so(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    await nats_server.stop()
    monkeypatch.setattr("headrace_core.bus.topology.CONNECT_SECONDS", 0.3)
    with pytest.raises(BusUnavailable, match="cannot connect to NATS"):
        await apply_topology(nats_server.url, NAMES, QUEUES)
    bus = Bus(nats_server.url, name="test")
    await bus.connect(0.1)
    view = await look(bus, NAMES)
    await bus.close()
    assert not view.connected
    assert view.problem
