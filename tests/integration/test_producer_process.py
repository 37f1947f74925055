"""`python -m producer` as a process: it says when it serves, serves, and ends cleanly on SIGTERM."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc

from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.db.pool import Database
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logins import as_service
from headrace_core.tasks.kinds import register_kinds
from tests.factories import row_of
from tests.fixtures.nats_users import as_user
from tests.fixtures.waiting import eventually
from tests.producer_harness import KINDS, connected_bus


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return kept | {"HEADRACE_LISTEN": "127.0.0.1:0", "HEADRACE_OPS_LISTEN": "127.0.0.1:0"} | settings


async def test_a_process_serves_and_stops_cleanly(database_url: str, nats_url: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    await apply_topology(nats_url, StreamNames(), [QueueSettings(name="default")])
    db = Database(database_url, max_size=2)
    await db.open()
    await register_kinds(db, KINDS)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "producer",
        env=environment(
            HEADRACE_DATABASE_URL=as_service(database_url, "producer"),
            HEADRACE_NATS_URL=as_user(nats_url, "producer"),
            HEADRACE_READY_FILE=str(ready),
        ),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await eventually(ready.exists, within=30)
        address = json.loads(ready.read_text())["grpc"]
        async with grpc.aio.insecure_channel(address) as channel, connected_bus(nats_url):
            stub: Any = producer_pb2_grpc.ProducerServiceStub(channel)
            answers = await asyncio.gather(
                *(stub.SubmitTask(producer_pb2.SubmitTaskRequest(kind="plain"), timeout=10) for _ in range(50))
            )
        assert len({answer.task.id for answer in answers}) == 50
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
        assert not ready.exists()
        rows = [await row_of(db, UUID(answer.task.id)) for answer in answers]
        assert all(row["published_in"] is not None for row in rows)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await db.close()


async def test_a_database_without_the_schema_is_named_at_the_start(empty_database_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "producer",
        env=environment(HEADRACE_DATABASE_URL=empty_database_url, HEADRACE_BROKER="none"),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert "run: headrace db migrate" in said.decode()
