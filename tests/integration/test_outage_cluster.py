"""A cluster of three: a leader that dies, a majority that is lost, and what is said about it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.v1 import producer_pb2, status_pb2
from headrace_core.bus.broker_status import look
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames, declared
from headrace_core.bus.errors import BusError
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.topology import apply
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats_cluster import NatsCluster
from status.health import Parts, judge
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually
from tests.integration.collector import Collector
from tests.producer_harness import connected_bus, running_producer

NAMES = StreamNames()
QUEUE = QueueSettings(name="default", ack_wait=1.0)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    """A cluster with the streams in three copies each."""
    log = StackLog(tmp_path / "nats.log")
    running = NatsCluster(tmp_path / "nats", log)
    try:
        await running.start()
        async with connected_bus(running.url) as bus:
            await eventually(lambda: _applied(bus), within=30, ignoring=(BusError,), what="the streams in three copies")
        yield running
    finally:
        await running.stop()
        log.close()


async def _applied(bus: Bus) -> bool:
    await apply(bus, declared([QUEUE], NAMES), replicas=3)
    return True


async def leader_of(bus: Bus, stream: str) -> str:
    """The name of the node that leads a stream."""

    async def found() -> str:
        info: dict[str, Any] = await bus.request(f"$JS.API.STREAM.INFO.{stream}", timeout=2.0)
        return str(info["cluster"].get("leader") or "")

    return str(await eventually(found, within=20, ignoring=(BusError,)))


async def test_publishing_and_pulling_survive_the_death_of_the_leader(cluster: NatsCluster) -> None:
    async with connected_bus(cluster.url) as bus:
        publisher = Publisher(bus)
        collector = Collector(bus, batch=16)
        await collector.puller.start()
        await collector.puller.request(16)
        accepted: set[bytes] = set()

        async def publish(count: int) -> bool:
            bodies = [f"{len(accepted)}/{n}".encode() for n in range(count)]
            subject = NAMES.task_subject("default.normal")
            results = await publisher.publish([OutgoingMessage(subject, body, body.decode()) for body in bodies])
            accepted.update(body for body, result in zip(bodies, results, strict=True) if result.accepted)
            return all(result.accepted for result in results)

        await publish(10)
        await eventually(lambda: collector.bodies() >= accepted, within=10)
        await cluster.kill_node(await leader_of(bus, NAMES.tasks))
        await eventually(lambda: publish(10), within=30, what="publishing again")
        await eventually(lambda: collector.bodies() >= accepted, within=30, what="everything accepted is delivered")
        await collector.puller.stop()
        await publisher.close()


async def test_without_a_majority_work_travels_through_postgres_and_returns(
    cluster: NatsCluster, database_url: str, tmp_path: Path
) -> None:
    async with running_producer(database_url, cluster.url, queues=[QUEUE]) as producer:
        rig = ConsumerRig(database_url, cluster.url, tmp_path)
        await rig.open()
        try:
            consumer = await rig.consumer(create_queues="false")
            assert consumer._works is not None
            mode = consumer._works._mode
            assert await rig.result(await rig.submit("double", {"n": 1}, publish=False), within=20)

            for name in ("n1", "n2"):
                await cluster.kill_node(name)
            request = producer_pb2.SubmitTaskRequest(kind="double", payload_json=b'{"n": 2}')
            answers = [await producer.tasks.SubmitTask(request, timeout=5) for _ in range(5)]
            await eventually(lambda: mode.mode == "fallback", within=15, what="the switch to Postgres")
            for answer in answers:
                await _completes(rig, answer.task.id)
            assert rig.bus is not None
            bus = rig.bus

            async def named() -> bool:
                view = await look(bus, NAMES)
                verdict = judge(Parts(broker=view))
                is_fallback = verdict.mode == status_pb2.DISPATCH_MODE_FALLBACK
                return is_fallback and ("majority" in view.problem or "quorum" in view.problem)

            await eventually(named, within=60, what="a problem that names the lost majority")

            for name in ("n1", "n2"):
                await cluster.start_node(name)
            await eventually(lambda: mode.mode == "broker", within=60, what="the return to the broker")
            task = await rig.submit("double", {"n": 3}, publish=False)
            assert await rig.result(task, within=30) == {"doubled": 6, "attempt": 1}
        finally:
            await rig.close()


async def _completes(rig: ConsumerRig, task_id: str) -> None:
    async def at_the_first_attempt() -> bool:
        rows = await rig.db.fetch(
            "select attempt from headrace_core.units where task_id = %(id)s and state = 'COMPLETED'", {"id": task_id}
        )
        return bool(rows) and rows[0]["attempt"] == 1

    await eventually(at_the_first_attempt, within=20)


async def test_a_frozen_node_is_left_for_another(cluster: NatsCluster) -> None:
    async with connected_bus(cluster.url) as bus:
        client = bus._client
        assert client is not None
        here = client.connected_url
        assert here is not None
        (node,) = [node for node in cluster.nodes if node.port == here.port]
        node.pause()
        try:
            await eventually(lambda: bus.jetstream and bus._client is not client, within=40)
        finally:
            node.resume()
