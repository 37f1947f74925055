"""Publishing, pulling and answering against a real server, also one that dies meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from headrace_core.bus import publisher as publisher_module
from headrace_core.bus.broker_status import QueueView, look
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import declared
from headrace_core.bus.errors import BusError
from headrace_core.bus.publisher import OutgoingMessage, Publisher, PublishOutcome
from headrace_core.bus.puller import acknowledge, in_progress
from headrace_core.bus.topology import apply
from headrace_core.stack.nats import NatsServer
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.integration.collector import NAMES, Collector

SUBJECT = NAMES.task_subject("default.normal")


@dataclass(frozen=True)
class Queue:
    name: str = "default"
    ack_wait: float = 1.0


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


@pytest.fixture
async def collect(bus: Bus) -> AsyncIterator[Callable[..., Collector]]:
    made: list[Collector] = []

    def make(**options: float) -> Collector:
        made.append(Collector(bus, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for collector in made:
        await collector.puller.stop()
        await collector.puller.stop()


def messages(count: int, start: int = 0) -> list[OutgoingMessage]:
    return [OutgoingMessage(SUBJECT, b"%d" % n, message_id=f"id/{n}") for n in range(start, start + count)]


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait for an async condition; a refused request means "not yet"."""
    await eventually(condition, ignoring=(BusError,))


async def in_flight(bus: Bus) -> QueueView:
    return (await look(bus, NAMES)).queues["default"]


async def test_results_are_in_order_over_many_windows(publisher: Publisher) -> None:
    results = await publisher.publish(messages(1000))
    assert [result.sequence for result in results] == list(range(1, 1001))
    assert {result.outcome for result in results} == {PublishOutcome.STORED}
    assert await publisher.publish([]) == []


async def test_a_repeated_id_is_a_duplicate(publisher: Publisher) -> None:
    await publisher.publish(messages(3))
    results = await publisher.publish(messages(4))
    assert [result.outcome for result in results] == ["duplicate", "duplicate", "duplicate", "stored"]
    assert all(result.accepted for result in results)


async def test_concurrent_publishes_get_their_own_answers(publisher: Publisher) -> None:
    batches = [messages(50, start=50 * number) for number in range(20)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(publisher.publish(batch)) for batch in batches]
    sequences = [result.sequence for task in tasks for result in task.result()]
    assert sorted(sequences) == list(range(1, 1001))
    again = await publisher.publish(batches[7])
    assert {result.outcome for result in again} == {PublishOutcome.DUPLICATE}


async def test_a_full_subject_is_full_and_others_go_on(bus: Bus, publisher: Publisher) -> None:
    config = (await bus.request("$JS.API.STREAM.INFO.HEADRACE_TASKS"))["config"]
    await bus.request("$JS.API.STREAM.UPDATE.HEADRACE_TASKS", {**config, "max_msgs_per_subject": 2})
    other = OutgoingMessage(NAMES.task_subject("default.high"), b"urgent")
    results = await publisher.publish([*messages(3), other])
    assert [result.outcome for result in results] == ["stored", "stored", "full", "stored"]
    assert results[2].err_code == 10077
    assert not results[2].accepted


async def test_refusals_stand_alone(publisher: Publisher) -> None:
    good = OutgoingMessage(SUBJECT, b"ok")
    bad = [
        OutgoingMessage("no.such.stream", b"x"),
        OutgoingMessage("white space", b"x"),
        OutgoingMessage(SUBJECT, b"x" * 5000),
        OutgoingMessage(SUBJECT, b"x" * 2_000_000),
        OutgoingMessage(SUBJECT, b"x", headers={"bad key": "v"}),
    ]
    results = await publisher.publish([good, *bad, good])
    assert [result.outcome for result in results] == [
        "stored", "missing", "rejected", "rejected", "rejected", "rejected", "stored"
    ]  # fmt: skip
    assert all(result.reason for result in results[1:-1])


async def test_disconnected_means_unavailable_at_once(nats_server: NatsServer, bus: Bus, publisher: Publisher) -> None:
    await nats_server.stop()
    await eventually(lambda: not bus.connected)
    async with asyncio.timeout(0.5):
        results = await publisher.publish(messages(1000))
    assert {result.outcome for result in results} == {PublishOutcome.UNAVAILABLE}
    assert len(results) == 1000


async def test_a_silent_server_is_unavailable_after_one_window(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "WINDOW_SECONDS", 0.3)
    async with Proxy(nats_server.port) as proxy:
        bus = Bus(proxy.url(nats_server.url), name="test")
        await bus.connect(5.0)
        await apply(bus, declared([Queue()]))
        publisher = Publisher(bus)
        await publisher.publish(messages(1))
        proxy.hold_replies()
        async with asyncio.timeout(1.0):
            results = await publisher.publish(messages(1000, start=1))
        assert {result.outcome for result in results} == {PublishOutcome.UNAVAILABLE}
        await proxy.restore()
        # The first window was stored, though we did not hear of it: the same ids say so.
        again = await publisher.publish(messages(1000, start=1))
        assert [result.outcome for result in again[:300]] == ["duplicate"] * 300
        assert [result.outcome for result in again[300:]] == ["stored"] * 700
        await publisher.close()
        await bus.close()


async def test_a_lost_connection_ends_the_window_at_once(nats_server: NatsServer) -> None:
    async with Proxy(nats_server.port) as proxy:
        bus = Bus(proxy.url(nats_server.url), name="test")
        await bus.connect(5.0)
        publisher = Publisher(bus)
        proxy.hold_replies()
        task = asyncio.create_task(publisher.publish(messages(10)))
        await eventually(lambda: bool(publisher._waiting))
        await proxy.cut()
        async with asyncio.timeout(1.5):  # less than a window's time
            results = await task
        assert {result.outcome for result in results} == {PublishOutcome.UNAVAILABLE}
        await publisher.close()
        await bus.close()


async def test_pull_and_acknowledge(bus: Bus, publisher: Publisher, collect: Callable[..., Collector]) -> None:
    collector = collect(batch=64)
    await collector.puller.start()
    await publisher.publish(messages(1000))
    await collector.puller.request(64)
    await eventually(lambda: len(collector.messages) == 1000)
    first = collector.messages[0]
    assert (first.subject, first.body, first.stream_sequence, first.deliveries) == (SUBJECT, b"0", 1, 1)
    assert first.timestamp > 1_600_000_000 * 10**9
    assert first.headers["Nats-Msg-Id"] == "id/0"
    assert (await in_flight(bus)).ack_pending == 1000
    assert await acknowledge(collector.messages) == 1000
    await bus.flush()
    await until(lambda: is_empty(bus))


async def is_empty(bus: Bus) -> bool:
    view = await in_flight(bus)
    return view == QueueView(0, 0)


async def test_outstanding_is_exact(bus: Bus, publisher: Publisher, collect: Callable[..., Collector]) -> None:
    collector = collect(expires=0.6, heartbeat=0.1)
    asked: list[int] = []
    collector.ask = lambda: asked.append(1)  # type: ignore[method-assign] # keep still
    puller = collector.puller
    await puller.start()
    assert await puller.request(5)
    assert await puller.request(3)
    assert puller.outstanding == 8
    await publisher.publish(messages(6))
    await eventually(lambda: len(collector.messages) == 6)
    assert puller.outstanding == 2
    await eventually(lambda: puller.outstanding == 0)  # the requests expire and say what they still wanted
    assert asked, "on_idle is called so that the owner asks again"
    assert puller.rebuilt == 0
    assert await puller.request(1)
    await publisher.publish(messages(1, start=6))
    await eventually(lambda: len(collector.messages) == 7)
    assert puller.outstanding == 0


async def test_heartbeats_of_a_quiet_queue_are_not_deafness(collect: Callable[..., Collector]) -> None:
    collector = collect(expires=1.0, heartbeat=0.1)
    await collector.puller.start()
    await collector.puller.request(10)
    await eventually(lambda: collector.idle >= 2)  # two requests lived out their time
    assert collector.puller.rebuilt == 0


async def test_nak_with_delay_and_in_progress(publisher: Publisher, collect: Callable[..., Collector]) -> None:
    collector = collect()
    await collector.puller.start()
    await publisher.publish(messages(2))
    await collector.puller.request(10)
    await eventually(lambda: len(collector.messages) == 2)
    back, kept = collector.messages
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await back.nak(0.3)
    assert await in_progress([kept]) == 1
    await eventually(lambda: len(collector.messages) == 3)
    assert 0.25 < loop.time() - started < 0.9
    again = collector.messages[2]
    assert (again.body, again.deliveries, again.stream_sequence) == (back.body, 2, back.stream_sequence)


async def test_term_removes_and_says_why(bus: Bus, publisher: Publisher, collect: Callable[..., Collector]) -> None:
    collector = collect()
    await collector.puller.start()
    await publisher.publish(messages(1))
    await collector.puller.request(1)
    await eventually(lambda: len(collector.messages) == 1)
    assert await collector.messages[0].term("no JSON\r\nat all")
    await until(lambda: is_empty(bus))

    async def advisory() -> bytes:
        answer = await bus.request("$JS.API.STREAM.MSG.GET.HEADRACE_ADVISORIES", {"seq": 1})
        return str(answer).encode()

    await until(advisory)


async def test_the_third_delivery_is_the_last(
    bus: Bus, publisher: Publisher, collect: Callable[..., Collector]
) -> None:
    collector = collect()
    await collector.puller.start()
    await publisher.publish(messages(1))
    await collector.puller.request(10)
    for number in (1, 2, 3):
        await eventually(lambda number=number: len(collector.messages) == number)  # type: ignore[misc]
        assert collector.messages[-1].deliveries == number
        await collector.messages[-1].nak(0.05)

    async def captured() -> bool:
        info = await bus.request("$JS.API.STREAM.INFO.HEADRACE_ADVISORIES")
        return bool(info["state"]["messages"])

    await until(captured)
    assert len(collector.messages) == 3


async def test_a_pull_survives_a_kill_of_the_server(
    nats_server: NatsServer, bus: Bus, publisher: Publisher, collect: Callable[..., Collector]
) -> None:
    collector = collect(batch=10)
    await collector.puller.start()
    await collector.puller.request(10)
    await publisher.publish(messages(5))
    await eventually(lambda: len(collector.messages) == 5)
    await acknowledge(collector.messages)
    await nats_server.kill()
    await eventually(lambda: not bus.connected)
    assert not await collector.messages[0].ack(), "an answer while disconnected says that it was not sent"
    assert not await collector.puller.request(1)
    await eventually(lambda: collector.puller.outstanding == 0)
    await nats_server.start()
    await eventually(lambda: bus.jetstream)
    results = await publisher.publish(messages(20, start=100))
    assert all(result.accepted for result in results)
    await eventually(lambda: {b"%d" % n for n in range(100, 120)} <= collector.bodies())


async def test_a_pull_that_the_server_forgot_is_noticed(
    bus: Bus, publisher: Publisher, collect: Callable[..., Collector]
) -> None:
    collector = collect(expires=30.0, heartbeat=0.2)
    await collector.puller.start()
    await collector.puller.request(10)
    subscription = collector.puller._subscription
    assert subscription is not None
    assert subscription._live is not None
    await subscription._live._conn._send_unsubscribe(subscription._live._id)
    await bus.flush()
    await publisher.publish(messages(3))
    await eventually(lambda: len(collector.messages) == 3)
    assert collector.puller.rebuilt == 1


async def test_a_missing_durable_is_asked_for_again_without_spinning(
    bus: Bus, publisher: Publisher, collect: Callable[..., Collector]
) -> None:
    await bus.request("$JS.API.CONSUMER.DELETE.HEADRACE_TASKS.default-normal")
    collector = collect()
    await collector.puller.start()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await collector.puller.request(10)
    await eventually(lambda: collector.idle >= 2)
    assert loop.time() - started >= 0.9
    assert collector.idle < 4
    await apply(bus, declared([Queue()]))
    await publisher.publish(messages(1))
    await eventually(lambda: len(collector.messages) == 1)


async def test_a_deleted_durable_ends_the_request(bus: Bus, collect: Callable[..., Collector]) -> None:
    collector = collect()
    collector.ask = lambda: None  # type: ignore[method-assign] # keep still
    await collector.puller.start()
    await collector.puller.request(10)
    await bus.flush()
    await bus.request("$JS.API.CONSUMER.DELETE.HEADRACE_TASKS.default-normal")
    await eventually(lambda: collector.puller.outstanding == 0)
    await eventually(lambda: collector.idle == 1)


async def test_what_arrives_while_stopping_is_put_back(
    bus: Bus, publisher: Publisher, collect: Callable[..., Collector]
) -> None:
    """ack_wait is a second; the other consumer has them sooner, by the nak of 0.2 s."""
    leaving, staying = collect(batch=500), collect(batch=500)
    await leaving.puller.start()
    await staying.puller.start()
    await leaving.puller.request(500)
    await bus.flush()
    # Their answers are on the way when we stop: the publisher returns before its puller has read anything.
    leaving.puller._stopping = True
    await publisher.publish(messages(100))
    await leaving.puller.stop()
    assert leaving.messages == []
    assert not await leaving.puller.request(1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await staying.puller.request(500)
    await eventually(lambda: len(staying.messages) == 100)
    assert loop.time() - started < 0.8
    assert {message.deliveries for message in staying.messages} == {2}
    # The request of the one that left is gone with it: nothing more is delivered to nobody.
    await publisher.publish(messages(100, start=100))
    await eventually(lambda: len(staying.messages) == 200)
    assert {message.deliveries for message in staying.messages[100:]} == {1}


async def test_stop_is_legal_before_start_and_without_a_server(nats_server: NatsServer, bus: Bus) -> None:
    unstarted = Collector(bus)
    await unstarted.puller.stop()
    collector = Collector(bus)
    await collector.puller.start()
    await collector.puller.request(1)
    await nats_server.kill()
    async with asyncio.timeout(5):
        await collector.puller.stop()
        await collector.puller.stop()
