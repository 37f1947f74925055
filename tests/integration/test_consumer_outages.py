"""Without a broker, without Postgres: work goes on, or goes on afterwards."""

from pathlib import Path

from headrace_core.bus.errors import StreamMissing
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks.publication import of_submitted
from headrace_core.telemetry import metrics
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually


def _claims(source: str) -> float:
    return float(metrics.claims_total.labels(source, "default")._value.get())


def _mode(rig: ConsumerRig) -> str:
    (consumer,) = rig.consumers
    assert consumer._works is not None
    return consumer._works._mode.mode


async def test_without_a_broker_work_comes_from_postgres(database_url: str, tmp_path: Path) -> None:
    rig = ConsumerRig(database_url, None, tmp_path)
    await rig.open()
    try:
        await rig.consumer()
        assert await rig.result(await rig.submit("double", {"n": 1})) == {"doubled": 2, "attempt": 1}
        task = await rig.submit("count-words", {"texts": ["a b", "c"]})
        assert (await rig.result(task))["total"] == 3
    finally:
        await rig.close()


async def test_an_outage_of_the_broker_is_bridged_and_ends_by_itself(rig: ConsumerRig, nats_server: NatsServer) -> None:
    await rig.consumer()
    before = _claims("postgres")
    assert await rig.result(await rig.submit("double", {"n": 1}))
    assert _claims("postgres") == before, "nothing is taken past the broker while it is up"
    await nats_server.kill()
    task = await rig.submit("double", {"n": 2}, publish=False)
    assert await rig.result(task, within=8) == {"doubled": 4, "attempt": 1}
    assert _mode(rig) == "fallback"
    await nats_server.start()
    await eventually(lambda: _mode(rig) == "broker", within=15, what="the return to the broker")
    during = _claims("postgres")
    bus = rig.bus
    assert bus is not None
    await eventually(lambda: bus.jetstream, what="the test's own connection")
    assert await rig.result(await rig.submit("double", {"n": 3})) == {"doubled": 6, "attempt": 1}
    assert _claims("postgres") == during


async def test_a_lost_stream_is_noticed_and_repaired(rig: ConsumerRig) -> None:
    await rig.consumer()
    assert rig.bus is not None
    await rig.bus.request(f"$JS.API.STREAM.DELETE.{rig.names.tasks}")
    task = await rig.submit("double", {"n": 5}, publish=False)

    async def is_back() -> bool:
        try:
            return await rig.unacknowledged() >= 0
        except StreamMissing:
            return False

    await eventually(is_back, what="the stream")
    await rig.publish([of_submitted(task)])
    assert await rig.result(task, within=15) == {"doubled": 10, "attempt": 1}


async def test_an_outage_of_postgres_costs_no_attempt(database_url: str, nats_url: str, tmp_path: Path) -> None:
    port = int(database_url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with Proxy(port) as proxy:
        rig = ConsumerRig(database_url, nats_url, tmp_path)
        await rig.open()
        try:
            rig._url = proxy.url(database_url)
            await rig.consumer()
            task = await rig.submit("finishes-when-asked")
            await rig.has_begun(task)
            await proxy.cut()
            (consumer,) = rig.consumers
            assert consumer._works is not None
            consumer._works.units.ask_all()  # the handler ends while nothing can be written
            units = consumer._works.units
            await eventually(lambda: units.unsettled == 1, what="the settlement that waits")
            await proxy.restore()
            assert await rig.result(task, within=15) == "finished in time"
            assert (await rig.row(task.id))["attempt"] == 1
        finally:
            await rig.close()
