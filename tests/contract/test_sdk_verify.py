"""`headrace verify`, the check of a fresh installation: what is well, what is not, and the words for it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from headrace.v1 import producer_pb2, status_pb2, task_pb2
from tests.contract.scripted import DEFAULTS, TASK, Script, ScriptedServer, life, refusal, serving, snapshot
from tests.contract.test_sdk_cli import Ran, cli

ANALYSIS = {"summary": "A ferry.", "answers": [{"answer": "Nine crowns."}], "backend": "embedded", "model": "tiny"}
HEALTHY, DEGRADED = status_pb2.HEALTH_STATE_HEALTHY, status_pb2.HEALTH_STATE_DEGRADED
UNHEALTHY = status_pb2.HEALTH_STATE_UNHEALTHY


class HttpSide:
    """Answers every request with `code` and `body`."""

    def __init__(self) -> None:
        self.code = "200 OK"
        self.body = b'{"status": "healthy", "mode": "broker", "consumers": [{}], "queues": {}}'
        self.paths: list[str] = []
        self.heads: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.paths.append(head.split()[1])
        self.heads.append(head.lower().replace("bearer", "Bearer"))
        start = f"HTTP/1.1 {self.code}\r\nContent-Length: {len(self.body)}\r\nConnection: close\r\n\r\n"
        writer.write(start.encode() + self.body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def http() -> AsyncIterator[HttpSide]:
    side = HttpSide()
    server = await asyncio.start_server(side.serve, "127.0.0.1", 0)
    side.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield side
    server.close()
    await server.wait_closed()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """An installation that is well."""
    script = Script()
    submitted: list[producer_pb2.SubmitTaskRequest] = []

    def accept(request: producer_pb2.SubmitTaskRequest) -> Any:
        submitted.append(request)
        return DEFAULTS["SubmitTask"](request)

    def ended(_request: status_pb2.GetTaskRequest) -> status_pb2.GetTaskResponse:
        request = submitted[-1]
        result = request.payload_json if request.kind == "echo" else json.dumps(ANALYSIS).encode()
        task = task_pb2.Task(id=TASK, kind=request.kind, state=task_pb2.TASK_STATE_COMPLETED, result_json=result)
        return status_pb2.GetTaskResponse(task=task)

    script.answers |= {"SubmitTask": accept, "GetTask": ended, "GetSystemStatus": system(HEALTHY)}
    # For each of the two tasks: what verify watches, and what the wait for the result does.
    script.watches.extend([life(), [snapshot(6, task_pb2.TASK_STATE_COMPLETED)]] * 2)
    async with serving(script) as scripted:
        yield scripted


def system(health: status_pb2.HealthState.ValueType, *problems: str) -> status_pb2.GetSystemStatusResponse:
    found = status_pb2.SystemStatus(health=health, mode=status_pb2.DISPATCH_MODE_BROKER, problems=problems)
    return status_pb2.GetSystemStatusResponse(system_status=found)


async def verify(server: ScriptedServer, *arguments: str) -> Ran:
    return await cli(server, "verify", "--within", "20", *arguments)


def words(ran: Ran) -> list[list[str]]:
    """The first two words of each line: which check, how it went."""
    return [line.split()[:2] for line in ran.out.splitlines()]


async def test_a_good_installation_is_a_line_for_each_check(server: ScriptedServer, http: HttpSide) -> None:
    ran = await verify(server, "--http", http.url + "/")
    assert (ran.code, ran.err) == (0, "")
    assert words(ran) == [["echo", "ok"], ["analysis", "ok"], ["system", "ok"], ["http", "ok"]]
    assert http.paths == ["/api/async-status"]
    echo, analysis = server.script.asked("SubmitTask")
    assert (echo.kind, analysis.kind) == ("echo", "ai.analyze")
    assert echo.idempotency_key != analysis.idempotency_key
    assert echo.labels["headrace"] == "verify"
    assert echo.HasField("deadline")
    assert json.loads(analysis.payload_json)["questions"] == ["How much does a return ticket cost?"]


async def test_json_is_one_object_for_each_check(server: ScriptedServer) -> None:
    ran = await verify(server, "--json", "--without-analysis")
    assert ran.code == 0
    assert [(one["check"], one["ok"], one["problems"]) for one in ran.objects()] == [
        ("echo", True, []),
        ("system", True, []),
    ]
    assert all(one["seconds"] >= 0 and one["detail"] for one in ran.objects())
    assert len(server.script.asked("SubmitTask")) == 1


async def test_another_result_than_the_payload_fails(server: ScriptedServer) -> None:
    task = task_pb2.Task(id=TASK, state=task_pb2.TASK_STATE_COMPLETED, result_json=b'{"text": "another"}')
    server.script.answers["GetTask"] = status_pb2.GetTaskResponse(task=task)
    ran = await verify(server, "--without-analysis")
    assert ran.code == 1
    assert words(ran) == [["echo", "FAILED"], ["system", "ok"]]
    assert 'returned {"text": "another"} and not its payload' in ran.out
    assert ran.err == "headrace: verify: failed: echo\n"


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({**ANALYSIS, "summary": ""}, "has no summary"),
        ({**ANALYSIS, "answers": []}, "has no answer"),
        ({**ANALYSIS, "answers": [{"answer": None}]}, "has no answer"),
        ([1], "has no summary"),
    ],
)
async def test_an_analysis_without_its_parts_fails(server: ScriptedServer, result: Any, says: str) -> None:
    good = server.script.answers["GetTask"]

    def answer(request: status_pb2.GetTaskRequest) -> status_pb2.GetTaskResponse:
        found: status_pb2.GetTaskResponse = good(request)
        if found.task.kind == "ai.analyze":
            found.task.result_json = json.dumps(result).encode()
        return found

    server.script.answers["GetTask"] = answer
    ran = await verify(server, "--json")
    assert ran.code == 1
    echo, analysis, _system = ran.objects()
    assert echo["ok"]
    assert not analysis["ok"]
    assert says in analysis["detail"]
    assert "headrace status --inference" in analysis["detail"]


async def test_a_task_that_failed_is_told_with_its_error_and_the_other_checks_go_on(server: ScriptedServer) -> None:
    error = task_pb2.TaskError(message="the model is not there")
    task = task_pb2.Task(id=TASK, kind="echo", state=task_pb2.TASK_STATE_FAILED, error=error)
    server.script.answers["GetTask"] = status_pb2.GetTaskResponse(task=task)
    ran = await verify(server, "--without-analysis")
    assert ran.code == 1
    assert "the model is not there" in ran.out
    assert f"headrace get {TASK}" in ran.out
    assert words(ran)[-1] == ["system", "ok"]


async def test_a_task_that_nobody_runs_is_given_up_in_time_with_its_last_state(server: ScriptedServer) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    server.script.watches.clear()
    server.script.watches.append([snapshot(1, task_pb2.TASK_STATE_PENDING), forever])
    ran = await cli(server, "verify", "--without-analysis", "--within", "1", "--json")
    assert ran.code == 1
    echo = ran.objects()[0]
    assert "was PENDING at last after" in echo["detail"]
    assert "the logs of the consumers" in echo["detail"]
    assert 1 < echo["seconds"] < 6


async def test_a_kind_that_is_not_registered_yet_is_waited_for(server: ScriptedServer) -> None:
    unknown = refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_KIND", "nobody has the kind echo")
    server.script.refusals.extend([unknown, unknown])
    ran = await verify(server, "--without-analysis")
    assert ran.code == 0
    assert len({one.idempotency_key for one in server.script.asked("SubmitTask")}) == 1


async def test_a_kind_that_nobody_registers_is_named(server: ScriptedServer) -> None:
    unknown = refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_KIND", "nobody has the kind echo")
    server.script.answers["SubmitTask"] = unknown
    ran = await cli(server, "verify", "--without-analysis", "--within", "1")
    assert ran.code == 1
    assert "nobody has the kind echo; see `headrace status`" in ran.out


async def test_a_degraded_system_is_well_enough_and_its_problems_are_shown(
    server: ScriptedServer, http: HttpSide
) -> None:
    server.script.answers["GetSystemStatus"] = system(DEGRADED, "NATS is away")
    http.code = "503 Service Unavailable"
    http.body = json.dumps(
        {"status": "degraded", "mode": "fallback", "consumers": [], "queues": {}, "problems": ["NATS is away"]}
    ).encode()
    ran = await verify(server, "--without-analysis", "--http", http.url)
    assert ran.code == 0
    assert words(ran) == [["echo", "ok"], ["system", "ok"], ["!", "NATS"], ["http", "ok"], ["!", "NATS"]]


async def test_an_unhealthy_system_is_waited_for_and_then_a_failure(server: ScriptedServer) -> None:
    server.script.answers["GetSystemStatus"] = system(UNHEALTHY, "no consumer has reported")
    ran = await cli(server, "verify", "--without-analysis", "--within", "1", "--json")
    assert ran.code == 1
    assert [one["ok"] for one in ran.objects()] == [True, False]
    assert "the system is UNHEALTHY: no consumer has reported" in ran.objects()[1]["detail"]
    assert len(server.script.asked("GetSystemStatus")) > 1


@pytest.mark.parametrize(
    ("code", "body", "says"),
    [
        ("200 OK", b"<html>It works!</html>", "no status of Headrace: <html>"),
        ("404 Not Found", b"Not Found", "answered 404"),
        ("200 OK", b'{"status": "healthy"}', "no status of Headrace"),
        ("503 X", b'{"status": "unhealthy", "mode": "broker", "consumers": [], "queues": {}}', "503, unhealthy"),
    ],
)
async def test_an_http_side_that_says_something_else_fails(
    server: ScriptedServer, http: HttpSide, code: str, body: bytes, says: str
) -> None:
    http.code, http.body = code, body
    ran = await cli(server, "verify", "--without-analysis", "--within", "1", "--json", "--http", http.url)
    assert ran.code == 1
    assert [one["ok"] for one in ran.objects()] == [True, True, False]
    assert says in ran.objects()[2]["detail"]


async def test_services_that_are_away_are_named_with_their_addresses() -> None:
    nowhere = ScriptedServer(Script())
    nowhere.address = "127.0.0.1:1"
    ran = await cli(nowhere, "verify", "--without-analysis", "--within", "1", "--json", "--http", "http://127.0.0.1:1")
    assert ran.code == 1
    echo, system_, http = (one["detail"] for one in ran.objects())
    assert "the producer at 127.0.0.1:1" in echo
    assert "the status service at 127.0.0.1:1" in system_
    assert "http://127.0.0.1:1/api/async-status cannot be read" in http


async def test_a_url_of_another_kind_is_a_mistake(server: ScriptedServer) -> None:
    ran = await verify(server, "--http", "file:///etc/passwd")
    assert (ran.code, ran.out) == (2, "")
    assert "--http" in ran.err
