"""The command line as programs see it: JSON on standard output, exit codes, one sentence on standard error."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from headrace.v1 import dead_letter_pb2, event_pb2, producer_pb2, queue_pb2, status_pb2, task_pb2
from tests.contract.scripted import TASK, Script, ScriptedServer, heartbeat, life, refusal, serving, snapshot, state

BOUND = 40


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with serving(Script()) as scripted:
        yield scripted


def environment(address: str) -> dict[str, str]:
    return {
        **os.environ,
        "HEADRACE_PRODUCER_ADDRESS": address,
        "HEADRACE_STATUS_ADDRESS": address,
        "PYTHONUNBUFFERED": "",
    }


@asynccontextmanager
async def started(address: str, *arguments: str, **changes: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command line as a process; killed if it has not ended by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "headrace.cli"),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment(address), **changes},
    )
    try:
        async with asyncio.timeout(BOUND):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def cli(server: ScriptedServer, *arguments: str, typed: str = "", **changes: str) -> Ran:
    async with started(server.address, *arguments, **changes) as process:
        out, err = await process.communicate(typed.encode())
    assert process.returncode is not None
    assert "Traceback" not in err.decode()
    return Ran(process.returncode, out.decode(), err.decode())


def parsed(line: str | bytes, message: Any) -> Any:
    """The line as the resource itself; fails on anything that is not its JSON mapping."""
    return json_format.Parse(line, message)


async def test_submit_prints_the_task(server: ScriptedServer) -> None:
    ran = await cli(
        server,
        *("submit", "echo", "--payload", '{"text":"你好"}', "--label", "a=b", "--idempotency-key", "k"),
        *("--priority", "low", "--delay", "5m", "--max-attempts", "2", "--queue", "q", "--json", "--namespace", "ns"),
    )
    task = parsed(ran.out, task_pb2.Task())
    assert (ran.code, ran.err) == (0, "")
    assert (task.id, task.idempotency_key, task.labels["a"]) == (TASK, "k", "b")
    (request,) = server.script.asked("SubmitTask")
    assert request.payload_json == '{"text":"你好"}'.encode()
    assert (request.namespace, request.queue, request.max_attempts) == ("ns", "q", 2)
    assert request.priority == task_pb2.PRIORITY_LOW


async def test_submit_reads_standard_input_and_files(server: ScriptedServer, tmp_path: Path) -> None:
    source = tmp_path / "payload.json"
    source.write_text('{"from": "file"}', encoding="utf-8")
    await cli(server, "submit", "echo", "--payload", "-", typed='{"from": "pipe"}')
    ran = await cli(server, "submit", "echo", "--payload", f"@{source}")
    assert ran.out == f"{TASK}\n"
    payloads = [request.payload_json for request in server.script.asked("SubmitTask")]
    assert payloads == [b'{"from":"pipe"}', b'{"from":"file"}']


async def test_submit_with_watch_prints_the_task_and_then_its_events(server: ScriptedServer) -> None:
    server.script.watches += [[snapshot(1, task_pb2.TASK_STATE_PENDING), *life()[1:]]]
    ran = await cli(server, "submit", "echo", "--watch", "--json")
    first, *events = ran.out.splitlines()
    assert parsed(first, task_pb2.Task()).id == TASK
    assert [parsed(line, event_pb2.TaskEvent()).sequence for line in events] == [1, 2, 3, 4, 5, 6]
    assert ran.code == 0


async def test_watch_prints_events_as_they_come_and_ends_with_the_task(server: ScriptedServer) -> None:
    seen = asyncio.Event()
    server.script.watches += [[life()[0], heartbeat(), seen.wait, *life()[1:]]]
    async with started(server.address, "watch", TASK, "--after", "0", "--json") as process:
        assert process.stdout is not None
        early = [await process.stdout.readline() for _ in range(2)]
        seen.set()
        rest, err = await process.communicate()
    events = [parsed(line, event_pb2.TaskEvent()) for line in [*early, *rest.splitlines()]]
    assert [event.sequence for event in events] == [1, 0, 2, 3, 4, 5, 6]
    assert events[1].HasField("heartbeat")
    assert (process.returncode, err) == (0, b"")
    assert json.loads(rest.splitlines()[-1])["stateChange"]["state"] == "TASK_STATE_COMPLETED"


@pytest.mark.parametrize("after", [[], ["--after", "9"]], ids=["snapshot", "beyond"])
async def test_watch_tells_the_shell_how_the_task_ended(server: ScriptedServer, after: list[str]) -> None:
    server.script.watches += [[] if after else [snapshot(9, task_pb2.TASK_STATE_FAILED)]]
    failed = task_pb2.Task(id=TASK, state=task_pb2.TASK_STATE_FAILED)
    server.script.answers["GetTask"] = status_pb2.GetTaskResponse(task=failed)
    assert (await cli(server, "watch", TASK, *after, "--json")).code == 1


async def test_an_interrupt_ends_a_tail_with_130(server: ScriptedServer) -> None:
    waiting, failed = snapshot(1, task_pb2.TASK_STATE_PENDING), state(2, task_pb2.TASK_STATE_FAILED)
    server.script.watches += [[waiting, failed, asyncio.Event().wait]]
    arguments = ("tail", "--queue", "q", "--label", "a=b", "--state", "failed", "--json")
    async with started(server.address, *arguments) as process:
        assert process.stdout is not None
        line = await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert parsed(line, event_pb2.TaskEvent()).state_change.state == task_pb2.TASK_STATE_FAILED
    assert (process.returncode, out, err) == (130, b"", b"")
    wanted = server.script.asked("WatchTasks")[0].filter
    assert (wanted.queue, list(wanted.states), dict(wanted.labels)) == ("q", [], {"a": "b"})


def answer_with(task: task_pb2.Task) -> status_pb2.GetTaskResponse:
    return status_pb2.GetTaskResponse(task=task)


async def test_get_and_result(server: ScriptedServer) -> None:
    done = task_pb2.Task(id=TASK, state=task_pb2.TASK_STATE_COMPLETED, result_json=b'{"n":\n1152921504606846977}')
    server.script.answers["GetTask"] = answer_with(done)
    server.script.watches += [[snapshot(9, task_pb2.TASK_STATE_COMPLETED)]]
    got, resulted = await asyncio.gather(cli(server, "get", TASK, "--json"), cli(server, "result", TASK, "--json"))
    assert parsed(got.out, task_pb2.Task()) == done
    assert resulted.out == '{"n": 1152921504606846977}\n'
    assert (got.code, resulted.code) == (0, 0)


async def test_a_result_that_will_never_be_is_exit_code_1(server: ScriptedServer) -> None:
    failed = task_pb2.Task(id=TASK, state=task_pb2.TASK_STATE_FAILED)
    failed.error.type, failed.error.message = "ValueError", "no"
    server.script.answers["GetTask"] = answer_with(failed)
    server.script.watches += [[snapshot(9, task_pb2.TASK_STATE_FAILED)]]
    ran = await cli(server, "result", TASK, "--json")
    sentence, line = ran.err.splitlines()
    assert (ran.code, ran.out) == (1, "")
    assert sentence == f"headrace: task {TASK} ended FAILED: ValueError: no"
    assert json.loads(line)["error"]["message"] in sentence


async def test_list_prints_one_task_a_line_and_says_when_it_stops(server: ScriptedServer) -> None:
    tasks = [task_pb2.Task(id=f"{n}") for n in range(5)]
    server.script.answers["ListTasks"] = status_pb2.ListTasksResponse(tasks=tasks)
    everything, some = await asyncio.gather(
        cli(server, "list", "--json"), cli(server, "list", "--json", "--limit", "2", "--state", "failed")
    )
    assert [parsed(line, task_pb2.Task()).id for line in everything.out.splitlines()] == ["0", "1", "2", "3", "4"]
    assert everything.err == ""
    assert len(some.out.splitlines()) == 2
    assert "more than 2" in some.err


LETTER = dead_letter_pb2.DeadLetter(id=f"{TASK}-1", task_id=TASK, queue="q", reason=40)  # type: ignore[arg-type]


async def test_dead_letters(server: ScriptedServer) -> None:
    answers = server.script.answers
    answers["ListDeadLetters"] = dead_letter_pb2.ListDeadLettersResponse(dead_letters=[LETTER])
    answers["GetDeadLetter"] = dead_letter_pb2.GetDeadLetterResponse(dead_letter=LETTER)
    answers["RedriveDeadLetters"] = dead_letter_pb2.RedriveDeadLettersResponse(
        matched=1, redriven=1, tasks=[task_pb2.Task(id=TASK)]
    )
    answers["DiscardDeadLetters"] = dead_letter_pb2.DiscardDeadLettersResponse(matched=1, discarded=1)
    listed, shown, redriven, discarded = await asyncio.gather(
        cli(server, "dlq", "list", "--json", "--reason", "crashed"),
        cli(server, "dlq", "show", TASK, "--json"),
        cli(server, "dlq", "redrive", TASK, "--json", "--payload", '{"a":1}', "--deadline", "1h", "--rate", "2"),
        cli(server, "dlq", "discard", "--queue", "q", "--yes", "--json"),
    )
    for ran in (listed, shown, discarded):
        assert parsed(ran.out, dead_letter_pb2.DeadLetter()) == LETTER
    assert parsed(redriven.out, task_pb2.Task()).id == TASK
    (request,) = server.script.asked("RedriveDeadLetters")
    assert (list(request.ids), request.payload_json, request.rate) == ([TASK], b'{"a":1}', 2.0)
    assert not request.HasField("filter")
    assert request.HasField("deadline")
    assert server.script.asked("DiscardDeadLetters")[0].filter.queue == "q"
    # Some dead letters have no namespace: none is asked for unless the caller names one.
    assert server.script.asked("DiscardDeadLetters")[0].filter.namespace == ""


async def test_what_cannot_be_undone_needs_a_yes_where_nobody_can_be_asked(server: ScriptedServer) -> None:
    server.script.answers["GetQueue"] = queue_pb2.GetQueueResponse(queue=queue_pb2.Queue(name="q", backlog=3))
    purged, discarded, unsaid = await asyncio.gather(
        cli(server, "queues", "purge", "q"),
        cli(server, "dlq", "discard", "--all"),
        cli(server, "dlq", "redrive"),
    )
    assert (purged.code, discarded.code, unsaid.code) == (2, 2, 2)
    assert "--yes" in purged.err
    assert "--all" in unsaid.err
    assert server.script.asked("PurgeQueue") == server.script.asked("DiscardDeadLetters") == []


async def test_queues(server: ScriptedServer) -> None:
    queue = queue_pb2.Queue(name="q", paused=True, backlog=3)
    for method in ("GetQueue", "PauseQueue", "ResumeQueue"):
        server.script.answers[method] = getattr(queue_pb2, f"{method}Response")(queue=queue)
    server.script.answers["ListQueues"] = queue_pb2.ListQueuesResponse(queues=[queue, queue])
    server.script.answers["PurgeQueue"] = queue_pb2.PurgeQueueResponse(purged=3)
    runs = await asyncio.gather(
        *(cli(server, "queues", name, "q", "--json") for name in ("show", "pause", "resume")),
        cli(server, "queues", "purge", "q", "--yes", "--json"),
        cli(server, "queues", "list", "--json"),
    )
    assert [ran.code for ran in runs] == [0] * 5
    for line in "".join(ran.out for ran in runs).splitlines():
        assert parsed(line, queue_pb2.Queue()) == queue
    assert len(runs[4].out.splitlines()) == 2


async def test_status_and_cancel(server: ScriptedServer) -> None:
    server.script.answers["GetSystemStatus"] = status_pb2.GetSystemStatusResponse(
        system_status=status_pb2.SystemStatus(mode=status_pb2.DISPATCH_MODE_FALLBACK, problems=["no broker"])
    )
    cancelled = task_pb2.Task(id=TASK, state=task_pb2.TASK_STATE_CANCELLED)
    server.script.answers["CancelTask"] = producer_pb2.CancelTaskResponse(task=cancelled)
    as_json, for_people, cancel = await asyncio.gather(
        cli(server, "status", "--json"), cli(server, "status"), cli(server, "cancel", TASK, "--json")
    )
    assert parsed(as_json.out, status_pb2.SystemStatus()).mode == status_pb2.DISPATCH_MODE_FALLBACK
    assert "FALLBACK" in for_people.out
    assert "! no broker" in for_people.out
    assert parsed(cancel.out, task_pb2.Task()) == cancelled


async def test_analyze_prints_summary_points_and_answers(server: ScriptedServer) -> None:
    result = {
        "summary": "Kurz.",
        "key_points": ["Punkt"],
        "answers": [
            {"question": "谁？", "answer": "王", "passages": [{"text": "王 lebt", "start": 3, "end": 9, "score": 0.5}]},
            {"question": "Wann?", "answer": None, "passages": []},
        ],
    }
    done = task_pb2.Task(
        id=TASK, state=task_pb2.TASK_STATE_COMPLETED, result_json=json.dumps(result, ensure_ascii=False).encode()
    )
    server.script.answers["GetTask"] = answer_with(done)
    server.script.watches += [[snapshot(9, task_pb2.TASK_STATE_COMPLETED)]] * 2
    arguments = ("analyze", "-", "--question", "谁？", "--question", "Wann?", "--instructions", "kurz")
    for_people = await cli(server, *arguments, typed="王 lebt.")
    as_json = await cli(server, *arguments, "--json", typed="王 lebt.")
    for expected in ("Kurz.", "- Punkt", "谁？", "王", "[3-9, 0.50] 王 lebt", "No answer"):
        assert expected in for_people.out
    assert as_json.objects() == [result]
    request = server.script.asked("SubmitTask")[0]
    assert request.kind == "ai.analyze"
    assert json.loads(request.payload_json) == {
        "document": "王 lebt.",
        "questions": ["谁？", "Wann?"],
        "instructions": "kurz",
    }


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", 2),
        (grpc.StatusCode.NOT_FOUND, "UNKNOWN_KIND", 3),
        (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", 5),
        (grpc.StatusCode.FAILED_PRECONDITION, "TASK_TERMINAL", 5),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKLOG_FULL", 6),
        (grpc.StatusCode.INTERNAL, "INTERNAL", 1),
    ],
)
async def test_refusals_are_a_sentence_an_object_and_an_exit_code(
    server: ScriptedServer, code: grpc.StatusCode, reason: str, exit_code: int
) -> None:
    server.script.refusals.append(refusal(code, reason, "this will not do", violations={"kind": "is odd"}))
    ran = await cli(server, "submit", "echo", "--json")
    *_, last = ran.err.splitlines()
    assert (ran.code, ran.out) == (exit_code, "")
    assert ran.err.startswith("headrace: this will not do\n")
    assert json.loads(last)["error"] == {
        "reason": reason,
        "code": code.name,
        "message": "this will not do",
        "violations": [{"field": "kind", "description": "is odd"}],
    }


async def test_services_that_are_away_are_exit_code_4(server: ScriptedServer) -> None:
    ran = await cli(server, "--status", "127.0.0.1:1", "get", TASK, "--json")
    assert ran.code == 4
    assert "status service at 127.0.0.1:1" in ran.err
    assert json.loads(ran.err.splitlines()[-1])["error"]["code"] == "UNAVAILABLE"


FAKE_EXTRA = """
import typer
app = typer.Typer()
@app.command()
def go() -> None:
    typer.echo("went")
"""


@pytest.mark.parametrize(
    ("head", "called"),
    [("", (0, "went")), ("import nowhere_to_be_found\n", (2, "nowhere_to_be_found"))],
    ids=["installed", "missing"],
)
async def test_verbs_of_the_services_come_by_entry_point(
    server: ScriptedServer, tmp_path: Path, head: str, called: tuple[int, str]
) -> None:
    (tmp_path / "fake_extra.py").write_text(head + FAKE_EXTRA, encoding="utf-8")
    (tmp_path / "fake_extra-1.dist-info").mkdir()
    (tmp_path / "fake_extra-1.dist-info" / "METADATA").write_text("Name: fake_extra\nVersion: 1\n", encoding="utf-8")
    (tmp_path / "fake_extra-1.dist-info" / "entry_points.txt").write_text(
        "[headrace.cli]\nfake = fake_extra:app\n", encoding="utf-8"
    )
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    ran = await cli(server, "fake", "go", PYTHONPATH=path)
    helped = await cli(server, "--help", PYTHONPATH=path)
    assert ran.code == called[0]
    assert called[1] in ran.out + ran.err
    assert "fake" in helped.out
