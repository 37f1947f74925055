"""`python -m consumer` as a process: ready file, health, SIGTERM, exit codes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from headrace_core.stack.logins import as_service
from tests.fixtures.consumers import SAMPLES, ConsumerRig
from tests.fixtures.nats_users import CREATOR, as_user
from tests.fixtures.waiting import eventually


@asynccontextmanager
async def process(environ: Mapping[str, str], folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    with (folder / "consumer.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "consumer", env={**inherited, **environ}, stdout=log, stderr=log
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def environment(database_url: str, nats_url: str, folder: Path, **changes: str) -> dict[str, str]:
    return {
        "HEADRACE_DATABASE_URL": as_service(database_url, "consumer"),
        "HEADRACE_NATS_URL": as_user(nats_url, CREATOR),
        "HEADRACE_HANDLERS": SAMPLES,
        "HEADRACE_CREATE_QUEUES": "true",
        "HEADRACE_GRACE_SECONDS": "2",
        "HEADRACE_READY_FILE": str(folder / "ready.json"),
    } | changes


async def ready(folder: Path) -> dict[str, Any]:
    path = folder / "ready.json"
    await eventually(path.exists, within=30, what="the ready file")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


async def test_it_serves_and_sigterm_hands_back_and_exits_clean(
    rig: ConsumerRig, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with process(environment(database_url, nats_url, tmp_path), tmp_path) as child:
        written = await ready(tmp_path)
        assert written["pid"] == child.pid
        async with grpc.aio.insecure_channel(written["grpc"]) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await rig.result(await rig.submit("plain-process", {"n": 1}), within=20)
        task = await rig.submit("waits")
        await rig.has_begun(task)
        child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await child.wait() == 0
        assert (await rig.row(task.id))["state"] == "PENDING"
        assert not (tmp_path / "ready.json").exists()


async def test_a_queue_that_nobody_declared_is_a_start_up_error(
    rig: ConsumerRig, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    (tmp_path / "odd_queue.py").write_text(
        "from headrace import handler\n@handler('odd', queue='nowhere')\nasync def odd(ctx, input: dict): ...\n"
    )
    environ = environment(
        database_url, nats_url, tmp_path, HEADRACE_CREATE_QUEUES="false", HEADRACE_HANDLERS="odd_queue"
    )
    environ["PYTHONPATH"] = str(tmp_path)
    async with process(environ, tmp_path) as child, asyncio.timeout(30):
        assert await child.wait() == 2
    said = (tmp_path / "consumer.log").read_text()
    assert "odd_queue.odd" in said
    assert "'nowhere'" in said
    assert "headrace.toml" in said


@pytest.mark.slow
async def test_stuck_threads_end_the_process(
    rig: ConsumerRig, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    async with process(environment(database_url, nats_url, tmp_path), tmp_path) as child:
        await ready(tmp_path)
        await rig.submit_many("stuck-thread", [{}] * 8)
        async with asyncio.timeout(30):
            assert await child.wait() == 1
    assert "TooManyStuckHandlers" in (tmp_path / "consumer.log").read_text()
