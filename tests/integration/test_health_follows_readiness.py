"""gRPC health and /readyz give one answer, in every service: by Postgres, not by the broker, until the stop."""

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.rpc.health import Health
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logins import as_service
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.nats_users import as_user
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

ROOT = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Service:
    """A service's process, the ways to its servers, and a watch on its health."""

    process: asyncio.subprocess.Process
    addresses: dict[str, Any]
    postgres: Proxy
    nats: Proxy
    stub: Any
    watch: Any
    log: Path

    async def answers(self) -> tuple[int, int]:
        """What /readyz and a Check say now."""
        checked = await self.stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return await asyncio.to_thread(_code, f"http://{self.addresses['ops']}/readyz"), checked.status

    async def told(self) -> int:
        """The next status that the watch is told."""
        async with asyncio.timeout(20):
            status: int = (await self.watch.read()).status
        return status


def _code(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@asynccontextmanager
async def running(name: str, database_url: str, nats_url: str, folder: Path) -> AsyncIterator[Service]:
    log, ready = folder / "log", folder / "ready.json"
    async with Proxy(_port(database_url)) as postgres, Proxy(_port(nats_url)) as nats:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        environ = inherited | {
            "HEADRACE_DATABASE_URL": as_service(postgres.url(database_url), name),
            "HEADRACE_NATS_URL": as_user(nats.url(nats_url), name),
            "HEADRACE_LISTEN": "127.0.0.1:0",
            "HEADRACE_OPS_LISTEN": "127.0.0.1:0",
            "HEADRACE_HTTP_LISTEN": "127.0.0.1:0",
            "HEADRACE_READY_FILE": str(ready),
            "HEADRACE_GRACE_SECONDS": "2",
        }
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", name), cwd=ROOT, env=environ, stdout=output, stderr=output
            )
        try:
            await eventually(ready.exists, within=30)
            addresses = json.loads(ready.read_text())
            async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                watch = stub.Watch(health_pb2.HealthCheckRequest())
                yield Service(process, addresses, postgres, nats, stub, watch, log)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _port(url: str) -> int:
    return int(url.split("/")[2].rpartition(":")[2])


@pytest.mark.parametrize("name", ["producer", "status", "consumer"])
async def test_health_says_what_readyz_says(name: str, database_url: str, nats_url: str, tmp_path: Path) -> None:
    await apply_topology(nats_url, StreamNames(), [QueueSettings(name="default")])
    async with running(name, database_url, nats_url, tmp_path) as service:
        assert await service.told() == SERVING
        assert await service.answers() == (200, SERVING)

        await service.postgres.cut()
        assert await service.told() == NOT_SERVING
        assert await service.answers() == (503, NOT_SERVING)
        await service.postgres.restore()
        assert await service.told() == SERVING
        assert await service.answers() == (200, SERVING)

        await service.nats.cut()
        await eventually(lambda: "bus_disconnected" in service.log.read_text(), within=20)
        assert await service.answers() == (200, SERVING)

        service.process.send_signal(signal.SIGTERM)
        # The next one at all: an absent broker has changed nothing in between.
        assert await service.told() == NOT_SERVING
        assert await service.watch.read() is grpc.aio.EOF
        assert await service.process.wait() == 0


async def test_a_consumer_that_drains_takes_no_part_while_its_handlers_end(rig: ConsumerRig, tmp_path: Path) -> None:
    consumer = await rig.consumer(handlers="tests.handlers.held", grace_seconds="20", finish_seconds="15")
    release = tmp_path / "release"
    task = await rig.submit("held", {"release": str(release)})
    await rig.has_begun(task)
    assert consumer.grpc_address is not None
    async with grpc.aio.insecure_channel(consumer.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        draining = asyncio.create_task(consumer.drain())

        async def not_serving() -> bool:
            return bool((await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == NOT_SERVING)

        await eventually(not_serving, within=5)
        assert not draining.done()
        release.touch()
        await draining


async def test_a_watch_looks_for_itself_and_tells_changes_only() -> None:
    problems: list[str] = []
    health = Health(lambda: problems)
    health.set_serving(True)
    context: Any = None  # a watch asks nothing of it
    watch = health.Watch(health_pb2.HealthCheckRequest(), context)
    async with asyncio.timeout(10):
        assert (await anext(watch)).status == SERVING
        problems.append("Postgres has not answered for 6 s")
        assert (await anext(watch)).status == NOT_SERVING
        problems.append("and something else")
        waiting = asyncio.ensure_future(anext(watch))
        problems.clear()
        assert (await waiting).status == SERVING
        health.set_serving(False)
        assert (await anext(watch)).status == NOT_SERVING
        health.close()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
