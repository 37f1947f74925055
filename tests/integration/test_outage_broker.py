"""A broker that is frozen, deaf, without JetStream or without rights: noticed, named, worked around, and left again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from consumer.intake.mode import ModeWatch
from headrace.v1 import status_pb2
from headrace_core.bus import connection as connection_module
from headrace_core.bus.broker_status import look
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.publisher import OutgoingMessage, Publisher, PublishOutcome
from headrace_core.bus.subscription import Subscription
from headrace_core.bus.topology import apply
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks.kinds import live_consumers
from headrace_core.telemetry import metrics
from status.health import Parts, Verdict, judge
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.integration.collector import Collector
from tests.producer_harness import connected_bus

NAMES = StreamNames()
QUEUE = QueueSettings(name="default", ack_wait=10.0)
SUBJECT = NAMES.task_subject("default.normal")


def outgoing(count: int, prefix: str = "m") -> list[OutgoingMessage]:
    return [OutgoingMessage(SUBJECT, f"{prefix}{n}".encode()) for n in range(count)]


async def lose(subscription: Subscription | None) -> None:
    """Make the server forget a subscription behind our back."""
    assert subscription is not None
    live = subscription._live
    assert live is not None
    await live._conn._send_unsubscribe(live._id)


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with connected_bus(nats_url) as connected:
        await apply(connected, declared([QUEUE], NAMES))
        yield connected


# -- what nats.py does not notice --------------------------------------------------------------------------------------


async def test_a_pull_loop_that_the_server_has_forgotten_is_rebuilt(bus: Bus) -> None:
    collector = Collector(bus, batch=16, heartbeat=0.2, expires=5.0)
    publisher = Publisher(bus)
    await collector.puller.start()
    await collector.puller.request(16)
    await publisher.publish(outgoing(4))
    await eventually(lambda: len(collector.messages) == 4)
    await lose(collector.puller._subscription)
    await bus.flush()
    await publisher.publish(outgoing(4, "later"))
    await eventually(lambda: collector.puller.rebuilt >= 1, what="the rebuild")
    # What the forgotten request had asked for went nowhere, and comes again; what is new comes at once.
    await publisher.publish(outgoing(4, "new"))
    await eventually(lambda: {f"new{n}".encode() for n in range(4)} <= collector.bodies())
    await eventually(lambda: collector.puller.silence < 1.0)
    await collector.puller.stop()
    await publisher.close()


async def test_a_publisher_whose_answers_go_nowhere_listens_anew(bus: Bus) -> None:
    publisher = Publisher(bus)
    assert all(result.accepted for result in await publisher.publish(outgoing(3)))
    await lose(publisher._subscription)
    first = await publisher.publish(outgoing(3))
    assert {result.outcome for result in first} == {PublishOutcome.UNAVAILABLE}
    assert all(result.accepted for result in await publisher.publish(outgoing(3)))
    await publisher.close()


async def test_a_connection_that_hears_no_answers_is_made_anew(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "JETSTREAM_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(connection_module, "JETSTREAM_SECONDS", 0.3)
    client = bus._client
    assert client is not None
    for number in list(client._subs):  # the library's own one for answers among them
        await client._send_unsubscribe(number)
    await bus.flush()
    await eventually(lambda: bus._client is not client and bus.jetstream, within=20)
    assert (await look(bus, NAMES)).problem == ""


async def test_sending_to_a_frozen_server_never_waits(nats_server: NatsServer, bus: Bus) -> None:
    publisher = Publisher(bus)
    await publisher.publish(outgoing(1))
    client = bus._client
    nats_server.pause()
    try:
        async with asyncio.timeout(5):
            for _ in range(3000):
                await bus.send("noise", b"x" * 4000)
                await asyncio.sleep(0)
        async with asyncio.timeout(15):  # its answers are missing, and it listens anew, on a connection that is stuck
            await publisher.publish(outgoing(2))
        await eventually(lambda: bus._client is not client, within=20)
    finally:
        nats_server.resume()
    await eventually(lambda: bus.jetstream, within=20)
    assert all(result.accepted for result in await publisher.publish(outgoing(2)))
    await publisher.close()


async def test_what_arrives_while_a_pull_loop_stops_is_given_back(nats_server: NatsServer, bus: Bus) -> None:
    """The server must have heard of the end before the drain's last round trip: what it sends after that is lost."""
    publisher = Publisher(bus)
    async with Proxy(nats_server.port) as proxy:
        far = Bus(proxy.url(nats_server.url), name="far")
        await far.connect(5.0)
        await eventually(lambda: far.jetstream)
        collector = Collector(far, batch=500)
        await collector.puller.start()
        await collector.puller.request(500)
        await far.flush()
        proxy.delay(0.1)
        stopping = asyncio.create_task(collector.puller.stop())
        sent = 0
        while not stopping.done():
            await publisher.publish(outgoing(1, f"m{sent}-"))
            sent += 1
            await asyncio.sleep(0.002)
        await stopping
        assert sent > 20
        other = Collector(bus, batch=500)
        await other.puller.start()
        await other.puller.request(500)
        # Long before ack_wait (10 s) brings back what was lost on the way.
        await eventually(lambda: len(collector.bodies() | other.bodies()) == sent, within=5, what="all are given back")
        await other.puller.stop()
        await proxy.restore()
        await far.close()
    await publisher.close()


# -- consumers ---------------------------------------------------------------------------------------------------------


def mode_of(rig: ConsumerRig) -> ModeWatch:
    (consumer,) = rig.consumers
    assert consumer._works is not None
    return consumer._works._mode


def claims(source: str) -> float:
    return float(metrics.claims_total.labels(source, "default")._value.get())


def shown_mode() -> str:
    """What the metric headrace_mode says."""
    (found,) = [
        sample.labels["mode"] for family in metrics.mode.collect() for sample in family.samples if sample.value == 1.0
    ]
    return str(found)


@asynccontextmanager
async def consumer_rig(database_url: str, nats_url: str, folder: Path, **settings: str) -> AsyncIterator[ConsumerRig]:
    rig = ConsumerRig(database_url, nats_url, folder)
    await rig.open()
    try:
        await rig.consumer(**settings)
        yield rig
    finally:
        await rig.close()


async def test_a_frozen_broker_is_left_before_the_connection_is_given_up(
    database_url: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with consumer_rig(database_url, nats_server.url, tmp_path) as rig:
        bus = rig.consumers[0]._bus
        assert bus is not None
        assert await rig.result(await rig.submit("double", {"n": 1}))
        assert shown_mode() == "broker"
        nats_server.pause()
        task = await rig.submit("double", {"n": 2}, publish=False)
        await eventually(lambda: mode_of(rig).mode == "fallback", within=15)
        assert bus.connected, "three pings take 6 s; work does not wait for them"
        assert "did not answer" in mode_of(rig).problem
        assert shown_mode() == "fallback"
        assert await rig.result(task) == {"doubled": 4, "attempt": 1}
        nats_server.resume()
        await eventually(lambda: mode_of(rig).mode == "broker", within=30)
        assert shown_mode() == "broker"


async def test_a_running_task_is_not_run_twice_when_the_broker_comes_back(
    database_url: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    async with consumer_rig(database_url, nats_server.url, tmp_path, handlers="tests.handlers.held") as rig:
        delivered = await rig.submit("held", {"release": str(release)})
        await rig.has_begun(delivered)
        await nats_server.kill()
        await eventually(lambda: mode_of(rig).mode == "fallback", within=15)
        claimed = await rig.submit("held", {"release": str(release)}, publish=False)
        await rig.has_begun(claimed)
        await nats_server.start()
        await eventually(lambda: mode_of(rig).mode == "broker", within=30)
        release.touch()
        for task in (delivered, claimed):
            assert await rig.result(task) == {"epoch": 1}
            row = await rig.row(task.id)
            assert (row["attempt"], row["failures"], row["interruptions"]) == (1, 0, 0)


async def test_due_work_that_nobody_publishes_is_claimed_all_the_same(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with consumer_rig(database_url, nats_url, tmp_path) as rig:
        assert await rig.result(await rig.submit("double", {"n": 1}))
        tasks = await rig.submit_many("double", [{"n": n} for n in range(100)], publish=False)
        for n, task in enumerate(tasks):
            assert await rig.result(task, within=25) == {"doubled": 2 * n, "attempt": 1}
        assert mode_of(rig).mode == "broker"


async def test_probes_that_nobody_takes_grow_rare(bus: Bus) -> None:
    watch = ModeWatch(bus, NAMES, ["default"], uuid4(), None, lambda: None)
    watch._switch.mode = "fallback"
    running = asyncio.create_task(watch.run())
    await eventually(lambda: watch._probe_pause >= 4.0, within=15, what="three probes")
    info = await bus.request(f"$JS.API.STREAM.INFO.{NAMES.tasks}")
    assert info["state"]["messages"] <= 4
    assert watch.mode == "fallback", "nobody has taken one"
    running.cancel()
    await asyncio.wait({running})
    await watch.close()


# -- rights ------------------------------------------------------------------------------------------------------------

ACCOUNTS = """
accounts {
  PLAIN { users: [{ user: plain, password: secret }] }
  STREAMS { jetstream: enabled, users: [
    { user: admin, password: secret }
    { user: mute, password: secret, permissions: { publish: { deny: "$JS.API.>" } } }
    { user: unfed, password: secret, permissions: { publish: { deny: "$JS.API.CONSUMER.MSG.NEXT.>" } } }
  ] }
}
"""


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server with accounts, and the streams in one of them."""
    config = tmp_path / "accounts.conf"
    config.write_text(ACCOUNTS)
    log = StackLog(tmp_path / "guarded.log")
    server = NatsServer(tmp_path / "guarded", log, arguments=("--config", str(config)))
    try:
        await server.start()
        async with connected_bus(as_user(server, "admin")) as admin:
            await apply(admin, declared([QUEUE], NAMES))
        yield server
    finally:
        await server.stop()
        log.close()


def as_user(server: NatsServer, user: str) -> str:
    return server.url.replace("//", f"//{user}:secret@")


@pytest.mark.parametrize(
    ("user", "said"), [("plain", "no JetStream for this account"), ("mute", "is $JS.API.> allowed?")]
)
async def test_without_jetstream_or_its_rights_work_goes_on_and_the_cause_is_named(
    database_url: str, guarded: NatsServer, tmp_path: Path, user: str, said: str
) -> None:
    async with consumer_rig(database_url, as_user(guarded, user), tmp_path, create_queues="false") as rig:
        await eventually(lambda: mode_of(rig).mode == "fallback", within=15)
        task = await rig.submit("double", {"n": 1}, publish=False)
        assert await rig.result(task) == {"doubled": 2, "attempt": 1}
        assert said in mode_of(rig).problem
        assert rig.bus is not None
        verdict = judge(Parts(broker=await look(rig.bus, NAMES)))
        assert verdict.mode == status_pb2.DISPATCH_MODE_FALLBACK
        (problem,) = [line for line in verdict.problems if "JetStream" in line]
        assert said in problem
        assert "secret" not in problem


async def test_without_the_right_to_pull_work_goes_on_and_readiness_says_it(
    database_url: str, guarded: NatsServer, tmp_path: Path
) -> None:
    async with consumer_rig(database_url, as_user(guarded, "unfed"), tmp_path, create_queues="false") as rig:
        tasks = await rig.submit_many("double", [{"n": n} for n in range(5)])
        for n, task in enumerate(tasks):
            assert await rig.result(task, within=25) == {"doubled": 2 * n, "attempt": 1}
        (consumer,) = rig.consumers

        def said() -> list[str]:
            return [problem for problem in consumer.problems() if "neither messages nor heartbeats" in problem]

        assert await eventually(said, within=40)


async def test_a_consumer_that_is_cut_off_shows_in_the_status(
    database_url: str, nats_server: NatsServer, bus: Bus, tmp_path: Path
) -> None:
    """The status service reaches the broker and this consumer does not: its word counts."""
    async with (
        Proxy(nats_server.port) as proxy,
        consumer_rig(database_url, proxy.url(nats_server.url), tmp_path) as rig,
    ):
        await proxy.cut()

        async def verdict() -> Verdict | None:
            found = judge(Parts(consumers=await live_consumers(rig.db), broker=await look(bus, NAMES)))
            return found if found.mode == status_pb2.DISPATCH_MODE_FALLBACK else None

        said = await eventually(verdict, within=20)
        assert said is not None
        assert any("do not get it from the broker" in problem for problem in said.problems)
