"""The external scaler over its socket, asked as KEDA asks it: real Postgres and NATS, a real producer and consumer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import grpc
import pytest

from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.db.pool import Database
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks import scaling
from headrace_core.tasks.model import Complete
from headrace_core.tasks.queues import declare, pause, resume
from headrace_core.tasks.scaling import QueueWork, read_active, read_work
from headrace_core.tasks.settle import settle
from headrace_core.telemetry import metrics
from status.keda import external_scaler_pb2 as pb
from status.limits import ScalingLimits
from tests.factories import a_holder, claimed, planned, submitted
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.integration.scaler_rig import Keda, a_ref, serving
from tests.producer_harness import refused, running_producer

HOLDER = a_holder()
DEFAULT, SLOW = QueueSettings(name="default"), QueueSettings(name="slow")
WAKES_ALONE = ScalingLimits(look=3600.0)
WORK, AGE = "headrace-work", "headrace-oldest-age"


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    await declare(database, [DEFAULT, SLOW])
    yield database
    await database.close()


async def postpone(db: Database, task_id: UUID, unit: int, by: str) -> None:
    """As a retry does, or the passing of time."""
    await db.execute(
        "update headrace_core.units set due_at = now() + %(by)s::interval where task_id = %(task)s and unit = %(unit)s",
        {"task": task_id, "unit": unit, "by": by},
    )


# -- at once ----------------------------------------------------------------------------------------------------------


async def test_from_nothing_to_a_task_and_back(
    rig: ConsumerRig, relay: None, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    await apply_topology(nats_url, StreamNames(), [DEFAULT])
    await declare(rig.db, [DEFAULT])
    release = tmp_path / "release"
    async with serving(database_url, nats_url) as (_, keda):
        stream = keda.stream(queues="default")
        assert await stream.next() is False
        assert (await keda.active(), await keda.value()) == (False, 0.0)
        tasks = await rig.submit_many("held", [{"release": str(release)}] * 3)
        assert await stream.next() is True
        await eventually(keda.active)
        assert await keda.value() == 3.0
        await rig.consumer(handlers="tests.handlers.held")
        await rig.has_begun(tasks[0])
        assert (await keda.value(), await keda.active()) == (3.0, True)  # whether they wait or are held
        release.touch()
        for task in tasks:
            await rig.ended(task)
        assert await stream.next() is False
        assert (await keda.value(), await keda.active()) == (0.0, False)


async def test_the_first_task_is_told_of_by_its_wake(database_url: str, nats_url: str) -> None:
    async with (
        running_producer(database_url, nats_url) as producer,
        serving(database_url, nats_url, WAKES_ALONE) as (_, keda),
    ):
        stream = keda.stream()
        assert await stream.next() is False
        await producer.submit()
        answered = time.perf_counter()
        assert await stream.next() is True
        took = time.perf_counter() - answered
        assert took < 0.3, f"active {took:.3f} s after the submit was answered"


async def test_without_a_broker_the_clock_tells_of_it(database_url: str, db: Database) -> None:
    async with serving(database_url) as (_, keda):
        stream = keda.stream()
        assert await stream.next() is False
        await submitted(db)
        committed = time.perf_counter()
        assert await stream.next() is True
        took = time.perf_counter() - committed
        assert took < 1.5, f"active {took:.3f} s after the commit; it is looked at every second"


async def test_a_wake_that_is_lost_costs_one_look(database_url: str, nats_server: NatsServer, db: Database) -> None:
    await apply_topology(nats_server.url, StreamNames(), [DEFAULT])
    async with serving(database_url, nats_server.url) as (_, keda):
        stream = keda.stream()
        assert await stream.next() is False
        nats_server.pause()
        try:
            await submitted(db)
            assert await stream.next(1.5) is True
        finally:
            nats_server.resume()


# -- what counts ------------------------------------------------------------------------------------------------------


async def test_what_counts_and_what_does_not(database_url: str, db: Database) -> None:
    await submitted(db, queue="slow", run_at=datetime.now(UTC) + timedelta(hours=1))
    async with serving(database_url) as (_, keda):
        assert (await keda.value(), await keda.active()) == (0.0, False)
        waiting, running = await submitted(db), await submitted(db)
        unit = await claimed(db, HOLDER, running.id)
        await submitted(db, queue="slow")
        await eventually(lambda: is_now(keda, 3.0))
        assert await keda.value(queues="default") == 2.0
        assert await keda.value(queues="slow, default") == 3.0
        assert await keda.value(queues="slow") == 1.0
        await pause(db, "slow")
        await eventually(lambda: is_now(keda, 2.0))
        assert not await keda.active(queues="slow")
        assert await read_active(db) == {"default": True, "slow": False}
        assert await keda.active(queues="default")
        await settle(db, [Complete(unit.lease, b"{}")])
        await settle(db, [Complete((await claimed(db, HOLDER, waiting.id)).lease, b"{}")])
        await eventually(lambda: is_now(keda, 0.0))
        assert not await keda.active()
        await resume(db, "slow")
        await eventually(lambda: is_now(keda, 1.0))


async def is_now(keda: Keda, value: float) -> bool:
    return await keda.value() == value


async def test_shards_count_and_between_them_there_is_a_consumer(database_url: str, db: Database) -> None:
    task = await planned(db, HOLDER, shards=3)
    async with serving(database_url) as (_, keda):
        assert await keda.value() == 3.0
        first = await claimed(db, HOLDER, task.id, 0)
        await eventually(lambda: is_now(keda, 3.0))
        await settle(db, [Complete(first.lease, b"{}")])
        await eventually(lambda: is_now(keda, 2.0))
        for shard in (1, 2):
            await postpone(db, task.id, shard, "1 hour")
        await eventually(lambda: is_now(keda, 0.0))
        assert await keda.active()
        stream = keda.stream()
        assert await stream.next() is True


@pytest.mark.parametrize("priority", [1, 2, 3])
@pytest.mark.parametrize("resumed", [False, True])
async def test_every_level_of_what_waits_is_seen(db: Database, priority: int, resumed: bool) -> None:
    """The statements name the levels one by one; one that they forget would be a queue that nobody scales."""
    task = await submitted(db)
    level = {"task": task.id, "priority": priority, "resumed": resumed}
    await db.execute(
        "update headrace_core.units set resumed = %(resumed)s, priority = %(priority)s where task_id = %(task)s", level
    )
    for by, due in (("1 hour", False), ("-20 seconds", True)):
        await postpone(db, task.id, -1, by)
        work = (await read_work(db))["default"]
        assert (work.waiting, work.oldest_age >= 20.0, work.active) == (int(due), due, due)
        assert await read_active(db) == {"default": due, "slow": False}


async def test_beyond_the_bound_nothing_is_counted(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SATURATED", 5)
    for priority in (1, 2, 3):
        for _ in range(3):
            await submitted(db, priority=priority)
    work = await read_work(db)
    assert (work["default"].waiting, work["default"].work) == (5, 5)
    assert work["slow"] == QueueWork("slow")


async def test_the_oldest_age(database_url: str, db: Database) -> None:
    task, _ = await submitted(db), await submitted(db, queue="slow")
    await postpone(db, task.id, -1, "-100 seconds")
    async with serving(database_url) as (_, keda):
        spec = await keda.spec(metric="oldest-age")
        assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (AGE, 30, 30.0)
        assert 100.0 <= await keda.value(metric="oldest-age") < 130.0
        assert await keda.value(metric="oldest-age", queues="slow") < 30.0
        await claimed(db, HOLDER, task.id)
        assert await eventually(lambda: younger(keda, 30.0))


async def younger(keda: Keda, seconds: float) -> bool:
    return await keda.value(metric="oldest-age") < seconds


# -- the protocol -----------------------------------------------------------------------------------------------------


async def test_the_target_is_given_in_both_forms(database_url: str, db: Database) -> None:
    async with serving(database_url) as (_, keda):
        spec = await keda.spec()
        assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (WORK, 64, 64.0)
        spec = await keda.spec(target="0.5", queuesFromEnv="default")
        assert (spec.targetSize, spec.targetSizeFloat) == (1, 0.5)


async def test_what_is_wrong_is_refused_by_every_method_with_every_violation(database_url: str, db: Database) -> None:
    wrong = {"queues": "default,nowhere,neither", "metric": "age", "target": "-1", "qeues": "x"}
    request = pb.GetMetricsRequest(scaledObjectRef=a_ref(wrong), metricName="other")
    asked = a_ref(wrong)
    async with serving(database_url) as (_, keda):
        for call in (
            keda.stub.IsActive(asked),
            keda.stub.GetMetricSpec(asked),
            keda.stub.GetMetrics(request),
            keda.stub.StreamIsActive(asked).read(),
        ):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS")
            fields = [field.removeprefix("scalerMetadata.") for field in refusal.fields if field != "metricName"]
            assert sorted(fields) == ["metric", "qeues", "queues", "queues", "target"]
            assert '"nowhere"' in refusal.message
            assert '"neither"' in refusal.message
        assert (await refused(keda.stub.GetMetrics(request))).fields.count("metricName") == 1
        strange = pb.GetMetricsRequest(scaledObjectRef=a_ref({}), metricName=AGE)
        refusal = await refused(keda.stub.GetMetrics(strange))
        assert refusal.fields == ["metricName"]
        assert WORK in refusal.message


async def test_a_queue_that_nobody_has_declared_is_refused_until_it_is(database_url: str, db: Database) -> None:
    async with serving(database_url) as (_, keda):
        refusal = await refused(keda.stub.IsActive(a_ref({"queues": "new"})))
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        refusal = await refused(keda.stream(queues="new").call.read())
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["scalerMetadata.queues"])
        await declare(db, [QueueSettings(name="new")])
        assert await keda.active(queues="new") is False
        assert await keda.stream(queues="new").next() is False


async def test_a_method_that_newer_versions_of_keda_try_is_unimplemented(database_url: str, db: Database) -> None:
    """KEDA then goes on without it; any other code it would try again and again."""
    async with serving(database_url) as (_, keda):
        call: Any = keda.channel.unary_stream("/externalscaler.ExternalScaler/StreamMetricSpec")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"").read()
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


# -- parts that are away ----------------------------------------------------------------------------------------------


async def test_while_postgres_is_away_there_is_no_figure_and_the_stream_stays(database_url: str, db: Database) -> None:
    async with (
        Proxy(urlsplit(database_url).port or 0) as wire,
        serving(wire.url(database_url), limits=ScalingLimits(look=0.1)) as (_, keda),
    ):
        await claimed(db, HOLDER, (await submitted(db, queue="slow")).id)
        stream, busy = keda.stream(queues="default"), keda.stream(queues="slow")
        assert (await stream.next(), await busy.next(), await keda.active()) == (False, True, True)
        unsaid = asyncio.create_task(busy.next(within=60.0))
        await wire.cut()
        await submitted(db)
        await eventually(lambda: unanswered(keda))  # the last reading serves for twenty times as long as it took
        request = pb.GetMetricsRequest(scaledObjectRef=a_ref({}), metricName=WORK)
        for call in (keda.stub.IsActive(a_ref({})), keda.stub.GetMetrics(request)):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        # KEDA needs the spec to fall back on its `fallback`, and need not wait for it.
        began = time.perf_counter()
        assert (await keda.spec(target="7", queues="default,slow")).targetSizeFloat == 7.0
        assert time.perf_counter() - began < 1.0
        assert (await keda.spec(queues="unheard-of")).metricName == WORK
        refusal = await refused(keda.stub.IsActive(a_ref({"metric": "age"})))
        assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["scalerMetadata.metric"])
        opened_blind = keda.stream()
        await wire.restore()
        assert await stream.next() is True
        assert await opened_blind.next() is True
        assert not unsaid.done()  # what was so before the outage and is so after it
        busy.call.cancel()
        await asyncio.wait([unsaid])
        assert await keda.active()


async def unanswered(keda: Keda) -> bool:
    try:
        await keda.active()
    except grpc.aio.AioRpcError:
        return True
    return False


async def test_the_drain_ends_streams_well(database_url: str, db: Database) -> None:
    async with serving(database_url) as (service, keda):
        streams = [keda.stream() for _ in range(3)]
        assert [await stream.next() for stream in streams] == [False] * 3
        began = time.perf_counter()
        await service.drain()
        assert [await stream.next() for stream in streams] == [None] * 3
        assert {await stream.call.code() for stream in streams} == {grpc.StatusCode.OK}
        assert time.perf_counter() - began < 5.0


async def test_streams_end_well_before_their_connection_is_cut_for_its_age(database_url: str, db: Database) -> None:
    async with serving(database_url, max_connection_age_seconds="0.5", max_connection_age_grace_seconds="1") as (
        _,
        keda,
    ):
        for _ in range(4):  # KEDA's loop, over several connections
            stream = keda.stream(queues="default")
            assert await stream.next() is False
            assert await stream.next() is None
            assert await stream.call.code() is grpc.StatusCode.OK


async def test_hundreds_of_triggers_on_one_connection(database_url: str, db: Database) -> None:
    async with serving(database_url, limits=ScalingLimits(look=0.2, max_streams=300)) as (_, keda):
        streams = [keda.stream(queues="default") for _ in range(300)]
        assert await asyncio.gather(*(stream.next() for stream in streams)) == [False] * 300
        refusal = await refused(keda.stream().call.read())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_LIMIT")
        await submitted(db)
        assert await asyncio.gather(*(stream.next() for stream in streams)) == [True] * 300
        streams[0].call.cancel()
        again = await eventually(lambda: keda.stream().next(), ignoring=(grpc.aio.AioRpcError,))
        assert again is True


# -- gauges -----------------------------------------------------------------------------------------------------------


async def test_the_gauges_say_what_the_scaler_says(database_url: str, db: Database) -> None:
    for _ in range(2):
        await submitted(db)
    await claimed(db, HOLDER, (await submitted(db)).id)
    await submitted(db, run_at=datetime.now(UTC) + timedelta(hours=1))
    await submitted(db, queue="slow")
    await pause(db, "slow")
    async with serving(database_url, limits=ScalingLimits(gauges=0.05)):
        await eventually(lambda: gauge("work") == 3.0)
        found = {name: gauge(name) for name in ("backlog", "in_flight", "delayed", "dead_letters")}
        assert found == {"backlog": 2.0, "in_flight": 1.0, "delayed": 1.0, "dead_letters": 0.0}
        assert 0.0 < (gauge("oldest_age_seconds") or 0.0) < 60.0
        assert (gauge("backlog", "slow"), gauge("work", "slow")) == (1.0, 0.0)
    assert gauge("work") is None


def gauge(name: str, queue: str = "default") -> float | None:
    return metrics.REGISTRY.get_sample_value(f"headrace_queue_{name}", {"queue": queue})
