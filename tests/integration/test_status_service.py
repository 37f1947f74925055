"""The whole status service over its sockets: gRPC, HTTP, the bus, and parts that are away or hang."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from headrace.v1 import event_pb2, status_pb2, status_pb2_grpc, task_pb2
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.bus.wakes import WakePublisher
from headrace_core.db.pool import Database
from headrace_core.settings.environment import load_settings
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logins import as_service
from headrace_core.stack.nats import NatsServer
from headrace_core.tasks.kinds import ConsumerRow, upsert_consumer, write_inference
from headrace_core.tasks.queues import declare
from status.app import StatusService
from status.limits import WatchLimits
from tests.factories import a_holder, submitted
from tests.fixtures.nats_users import as_user
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.integration.status_rig import NO_SWEEP, SWEEP_ONLY, new_id, run_task

HOLDER = a_holder()
NAMES = StreamNames()
DEFAULT = QueueSettings(name="default")


@asynccontextmanager
async def serving(
    database_url: str, nats_url: str | None, limits: WatchLimits | None = None
) -> AsyncIterator[StatusService]:
    """The service in this process, drained and stopped at the end."""
    environ = {"HEADRACE_DATABASE_URL": as_service(database_url, "status"), "HEADRACE_HTTP_LISTEN": "127.0.0.1:0"}
    environ |= {"HEADRACE_NATS_URL": as_user(nats_url, "status")} if nats_url else {"HEADRACE_BROKER": "none"}
    service = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/")), limits)
    try:
        await service.start()
        yield service
        await service.drain()
    finally:
        await service.stop()


@asynccontextmanager
async def stub_of(service: StatusService) -> AsyncIterator[Any]:
    assert service.grpc_address is not None
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        yield status_pb2_grpc.StatusServiceStub(channel)


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    await declare(database, [DEFAULT])
    yield database
    await database.close()


@pytest.fixture
async def streams(nats_url: str) -> None:
    await apply_topology(nats_url, NAMES, [DEFAULT])


async def http(service: StatusService, path: str) -> tuple[int, dict[str, Any]]:
    """GET over a plain socket: no client library hides what came back."""
    assert service.http_address is not None
    host, port = service.http_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    async with asyncio.timeout(5.0):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def rest_of(stream: Any) -> list[event_pb2.TaskEvent]:
    """What comes until the stream ends."""
    events = []
    async with asyncio.timeout(20.0):
        while (response := await stream.read()) is not grpc.aio.EOF:
            events.append(response.event)
    return events


async def a_consumer(db: Database) -> None:
    await upsert_consumer(db, ConsumerRow(uuid4(), "host/1", ["echo"], ["default"]))


async def test_a_healthy_system_says_so(db: Database, database_url: str, nats_url: str, streams: None) -> None:
    await a_consumer(db)
    await submitted(db, id=new_id())
    async with serving(database_url, nats_url) as service:
        code, answer = await http(service, "/api/async-status")
        assert (code, answer["status"], answer["mode"]) == (200, "healthy", "broker"), answer
        assert answer["queueCheck"] == {"hasTaskStream": True, "hasDeadLetterStream": True, "hasFallback": True}
        assert answer["queues"]["default"]["backlog"] == 1
        assert answer["queues"]["default"]["oldestAgeSeconds"] >= 0
        assert "problems" not in answer
        async with stub_of(service) as stub:
            found = (await stub.GetSystemStatus(status_pb2.GetSystemStatusRequest())).system_status
        assert found.health == status_pb2.HEALTH_STATE_HEALTHY
        assert [consumer.worker for consumer in found.consumers] == ["host/1"]
        assert found.queues[0].limits.max_attempts == 3
        assert service.problems() == []


async def test_the_root_leads_to_the_systems_status(database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url) as service:
        assert service.http_address is not None
        connection = HTTPConnection(service.http_address, timeout=5)
        await asyncio.to_thread(connection.request, "GET", "/")
        answer = await asyncio.to_thread(connection.getresponse)
        assert (answer.status, answer.getheader("location")) == (307, "/api/async-status")
        connection.close()


async def test_without_streams_or_consumers_it_says_what_to_do(db: Database, database_url: str, nats_url: str) -> None:
    async with serving(database_url, nats_url) as service:
        code, answer = await http(service, "/api/async-status")
        assert (code, answer["status"]) == (503, "unhealthy")
        assert answer["queueCheck"] == {"hasTaskStream": False, "hasDeadLetterStream": False, "hasFallback": False}
        assert any("start a consumer" in problem for problem in answer["problems"])
        assert any("headrace topology apply" in problem for problem in answer["problems"])


async def test_a_broker_that_goes_away_is_fallback_and_comes_back(
    db: Database, database_url: str, nats_server: NatsServer, streams: None
) -> None:
    await a_consumer(db)
    async with serving(database_url, nats_server.url) as service:
        await nats_server.kill()

        async def status() -> str:
            code, answer = await http(service, "/api/async-status")
            return f"{code} {answer['status']} {answer['mode']}"

        await eventually(lambda: _equals(status(), "503 degraded fallback"))
        assert service.problems() == []
        await nats_server.start()
        await eventually(lambda: _equals(status(), "200 healthy broker"))


async def test_by_choice_without_a_broker(db: Database, database_url: str) -> None:
    await a_consumer(db)
    async with serving(database_url, None) as service:
        code, answer = await http(service, "/api/async-status")
        assert (code, answer["status"], answer["mode"]) == (200, "healthy", "postgres")


async def test_a_frozen_broker_does_not_hold_the_answer_up(
    db: Database, database_url: str, nats_server: NatsServer, streams: None
) -> None:
    await a_consumer(db)
    async with serving(database_url, nats_server.url) as service:
        nats_server.pause()
        async with asyncio.timeout(2.0):
            code, answer = await http(service, "/api/async-status")
        assert (code, answer["status"]) == (503, "degraded")
        assert "NATS did not answer" in answer["problems"][0]
        nats_server.resume()


@pytest.mark.parametrize("way", ["silent", "cut"])
async def test_without_postgres_the_answers_come_in_time_and_watches_live_on(
    db: Database, database_url: str, nats_url: str, streams: None, way: str
) -> None:
    await a_consumer(db)
    task = await submitted(db, id=new_id())
    async with (
        Proxy(_port(database_url)) as proxy,
        serving(proxy.url(database_url), nats_url, SWEEP_ONLY) as service,
        stub_of(service) as stub,
    ):
        stream = stub.WatchTask(status_pb2.WatchTaskRequest(id=str(task.id)))
        assert (await stream.read()).event.HasField("snapshot")
        if way == "silent":
            proxy.hold()
        else:
            await proxy.cut()
        for path in ("/api/async-status", "/api/ai-status"):
            async with asyncio.timeout(2.0):
                code, answer = await http(service, path)
            assert (code, answer["status"]) == (503, "unhealthy")
            assert "Postgres" in json.dumps(answer)
        await eventually(lambda: bool(service.problems()))
        await proxy.restore()
        await run_task(db, HOLDER, task.id, outputs=2)
        events = await rest_of(stream)
        assert [event.sequence for event in events] == [2, 3, 4, 5]
        await eventually(lambda: not service.problems())


async def test_inference_is_as_the_consumers_saw_it(db: Database, database_url: str) -> None:
    health = {"backend": "openai", "model": "m", "models": ["m", "n"], "latencyMs": 20.0, "lastError": None}
    async with serving(database_url, None) as service:
        code, answer = await http(service, "/api/ai-status")
        assert code == 503
        assert "no consumer" in answer["lastError"]
        await write_inference(db, health)

        async def code_of_well() -> bool:
            code, answer = await http(service, "/api/ai-status")
            return (code, answer["models"], answer["latencyMs"]) == (200, ["m", "n"], 20.0)

        await eventually(code_of_well)
        await write_inference(db, health | {"lastError": "connection refused", "latencyMs": None})
        await eventually(lambda: _equals(_code(service, "/api/ai-status"), 503))


async def test_a_wake_on_the_bus_reaches_the_watcher(
    db: Database, database_url: str, nats_url: str, streams: None
) -> None:
    bus = Bus(nats_url, name="test")
    assert await bus.connect(5.0)
    try:
        async with serving(database_url, nats_url, NO_SWEEP) as service, stub_of(service) as stub:
            task = await submitted(db, id=new_id())
            stream = stub.WatchTask(status_pb2.WatchTaskRequest(id=str(task.id)))
            await stream.read()
            await WakePublisher(bus, NAMES).publish(await run_task(db, HOLDER, task.id, outputs=1))
            events = await rest_of(stream)
            assert [event.sequence for event in events] == [2, 3, 4]
            assert await stream.code() == grpc.StatusCode.OK
    finally:
        await bus.close()


async def test_many_and_filters_over_the_wire(db: Database, database_url: str) -> None:
    async with serving(database_url, None, SWEEP_ONLY) as service, stub_of(service) as stub:
        ids = [new_id() for _ in range(3)]
        for task_id in ids:
            await submitted(db, id=task_id, labels={"batch": "7"})
        by_ids = stub.WatchTasks(status_pb2.WatchTasksRequest(ids=[str(task_id) for task_id in ids]))
        wanted = status_pb2.TaskFilter(labels={"batch": "7"})
        by_filter = stub.WatchTasks(status_pb2.WatchTasksRequest(filter=wanted))
        await by_filter.read()
        for task_id in ids:
            await run_task(db, HOLDER, task_id, outputs=0)
        ends = [response.event async for response in by_ids if response.event.state_change.terminal]
        assert {event.task_id for event in ends} == {str(task_id) for task_id in ids}
        seen: set[str] = set()
        while len(seen) < 3:
            event = (await by_filter.read()).event
            if event.state_change.terminal or event.snapshot.HasField("end_time"):
                seen.add(event.task_id)
        by_filter.cancel()


async def test_get_and_list_over_the_wire(db: Database, database_url: str) -> None:
    async with serving(database_url, None) as service, stub_of(service) as stub:
        ids = [new_id() for _ in range(5)]
        for task_id in ids:
            await submitted(db, id=task_id)
        await run_task(db, HOLDER, ids[0], outputs=0)
        full = status_pb2.GetTaskRequest(id=str(ids[0]), view=status_pb2.TASK_VIEW_FULL)
        task = (await stub.GetTask(full)).task
        assert (task.state, task.result_json) == (task_pb2.TASK_STATE_COMPLETED, b'{"ok": true}')
        assert task.result.struct_value["ok"] is True
        basic = (await stub.GetTask(status_pb2.GetTaskRequest(id=str(ids[0])))).task
        assert not basic.HasField("result_json")
        seen: list[str] = []
        token = ""
        while True:
            page = await stub.ListTasks(status_pb2.ListTasksRequest(page_size=2, page_token=token))
            seen += [task.id for task in page.tasks]
            if not (token := page.next_page_token):
                break
        assert seen == [str(task_id) for task_id in reversed(ids)]


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("GetTask", status_pb2.GetTaskRequest(id="x"), "INVALID_ARGUMENT", b"INVALID_FIELDS"),
        ("GetTask", status_pb2.GetTaskRequest(id=str(UUID(int=5))), "NOT_FOUND", b"TASK_NOT_FOUND"),
        ("ListTasks", status_pb2.ListTasksRequest(page_size=-1), "INVALID_ARGUMENT", b"INVALID_FIELDS"),
        ("ListTasks", status_pb2.ListTasksRequest(page_token="aGk"), "INVALID_ARGUMENT", b"PAGE_TOKEN_INVALID"),
    ],
)
async def test_refusals_over_the_wire(
    db: Database, database_url: str, method: str, request_: Any, code: str, reason: bytes
) -> None:
    async with serving(database_url, None) as service, stub_of(service) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(stub, method)(request_)
        assert refused.value.code().name == code
        assert reason in dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]


async def test_a_drain_ends_watches_with_unavailable_at_once(db: Database, database_url: str) -> None:
    task = await submitted(db, id=new_id())
    async with serving(database_url, None) as service, stub_of(service) as stub:
        stream = stub.WatchTask(status_pb2.WatchTaskRequest(id=str(task.id)))
        await stream.read()
        async with asyncio.timeout(3.0):
            await service.drain()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
        assert b"DRAINING" in dict(ended.value.trailing_metadata() or ())["grpc-status-details-bin"]


async def test_the_process_says_when_it_is_ready_and_stops_cleanly(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    environ = {
        "HEADRACE_DATABASE_URL": as_service(database_url, "status"),
        "HEADRACE_NATS_URL": as_user(nats_url, "status"),
        "HEADRACE_LISTEN": "127.0.0.1:0",
        "HEADRACE_HTTP_LISTEN": "127.0.0.1:0",
        "HEADRACE_READY_FILE": str(ready),
        "PATH": "/usr/bin:/bin",
    }
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "status", env=environ, cwd=root)
    try:
        await eventually(ready.exists, within=20.0)
        addresses = json.loads(ready.read_text())
        async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
            stub: Any = status_pb2_grpc.StatusServiceStub(channel)
            await stub.GetSystemStatus(status_pb2.GetSystemStatusRequest())
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10.0):
            assert await process.wait() == 0
        assert not ready.exists()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _code(service: StatusService, path: str) -> int:
    return (await http(service, path))[0]


async def _equals(value: Any, wanted: object) -> bool:
    return bool(await value == wanted)


def _port(url: str) -> int:
    return int(url.rpartition("@")[2].partition("/")[0].rpartition(":")[2])
