"""Marked payloads, results, errors, labels, keys and passwords go every way there is; no line of a log has the mark."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.v1 import (
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    producer_pb2,
    producer_pb2_grpc,
    status_pb2,
    status_pb2_grpc,
)
from headrace_core.stack.dev import LocalStack
from tests.fixtures.servers import handlers_path
from tests.fixtures.waiting import eventually
from tests.fuzz.raw_nats import Published, RawNats

MARK = "m4rked-s3cret"
KINDS = ("leaks-raising", "leaks-in-thread", "leaks-timing-out", "leaks-in-process", "leaks-result")
UNIT_FIELDS = {"task", "unit", "namespace", "queue", "kind", "attempt", "epoch"}
TERMINAL = (3, 4, 5, 6)


@pytest.mark.timeout(120)
async def test_nothing_that_is_the_users_is_in_any_line(tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": handlers_path(),
        "HEADRACE_LOG_LEVEL": "debug",
        "HEADRACE_LOG_FORMAT": "json",
        "HEADRACE_AI_BACKEND": "openai",
        "HEADRACE_AI_MODEL": "m",
        "HEADRACE_AI_BASE_URL": "http://127.0.0.1:9/v1",
        "HEADRACE_AI_API_KEY": MARK,
        "HEADRACE_CONFIG": str(tmp_path / "headrace.toml"),
    }
    config = tmp_path / "headrace.toml"
    config.write_text('queues = [{name = "default", max_attempts = 1, max_crashes = 1}]\n')
    async with LocalStack(tmp_path / "stack", handlers=["leaky"], environment=environment, consumers=1) as stack:
        async with (
            grpc.aio.insecure_channel(stack.endpoints.producer) as producing,
            grpc.aio.insecure_channel(stack.endpoints.status) as watching,
        ):
            await _work(producing, watching)
        await asyncio.to_thread(_publish_what_is_no_task, stack.nats.url)
        await eventually(lambda: "malformed.recorded" in stack.log_file.read_text(), within=20)
    text = stack.log_file.read_text()
    assert MARK not in text, next(line for line in text.splitlines() if MARK in line)[:500]
    _lines_are_json_and_name_their_unit(text)


async def _work(producing: grpc.aio.Channel, watching: grpc.aio.Channel) -> None:
    producer: Any = producer_pb2_grpc.ProducerServiceStub(producing)
    letters: Any = dead_letter_pb2_grpc.DeadLetterServiceStub(producing)
    status: Any = status_pb2_grpc.StatusServiceStub(watching)
    ids = [await _submit(producer, kind) for kind in KINDS]
    ids.append(await _submit(producer, "ai.analyze", document=MARK))
    metadata = (("authorization", f"Bearer {MARK}"),)
    for request in (
        producer_pb2.SubmitTaskRequest(kind=MARK, payload_json=MARK.encode(), labels={MARK + " ": MARK}),
        producer_pb2.SubmitTaskRequest(kind="leaks-result", payload_json=b'{"text": 1}', idempotency_key=MARK),
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await producer.SubmitTask(request, timeout=10, metadata=metadata)
    for task_id in ids:
        await eventually(functools.partial(_ended, status, task_id), within=40, what=task_id)
    await letters.RedriveDeadLetters(dead_letter_pb2.RedriveDeadLettersRequest(ids=ids[:1]), timeout=10)


async def _submit(producer: Any, kind: str, **payload: str) -> str:
    request = producer_pb2.SubmitTaskRequest(
        kind=kind,
        payload_json=json.dumps(payload or {"text": MARK}).encode(),
        labels={"team": MARK},
        idempotency_key=MARK if kind == KINDS[0] else f"{MARK}-{kind}",
    )
    return str((await producer.SubmitTask(request, timeout=10)).task.id)


async def _ended(status: Any, task_id: str) -> bool:
    answer = await status.GetTask(status_pb2.GetTaskRequest(id=task_id), timeout=10)
    return answer.task.state in TERMINAL


def _publish_what_is_no_task(url: str) -> None:
    with RawNats(url) as client:
        for body in (MARK.encode(), json.dumps({"task": MARK, "unit": MARK, "dispatch": 1}).encode()):
            client.publish(Published(b"headrace.tasks.default.normal", body))
        client.publish(Published(b"headrace.events.wake", MARK.encode()))
        client.publish(Published(b"headrace.control.cancel", MARK.encode()))
        advisory = b"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.HEADRACE_TASKS.x"
        client.publish(Published(advisory, json.dumps({"consumer": MARK}).encode()))


def _lines_are_json_and_name_their_unit(text: str) -> None:
    written = [found for line in text.splitlines() if (found := re.search(r"\{.*\}$", line))]
    lines = [json.loads(found.group()) for found in written if '"action"' in found.group()]
    seen = [line for line in lines if line["action"] == "leaky.seen"]
    assert len(seen) >= 2
    assert all(set(line) >= UNIT_FIELDS for line in seen), seen[0]
    assert all(line["action"] and line["service"] for line in lines)
    crashed = [line for line in lines if line["action"] == "thread.crashed"]
    assert len(crashed) >= 2, "the threads of the handlers died of the mark"
    assert all("ValueError" in line["exception"] for line in crashed)


@pytest.mark.parametrize("service", ["producer", "consumer", "status"])
async def test_a_start_that_fails_shows_no_password(service: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment = kept | {
        "HEADRACE_DATABASE_URL": f"postgresql://joe:{MARK}@127.0.0.1:1/x?sslpassword={MARK}",
        "HEADRACE_NATS_URL": f"nats://{MARK}@127.0.0.1:1",
        "HEADRACE_LOG_LEVEL": "debug",
        "HEADRACE_LISTEN": "127.0.0.1:0",
        "HEADRACE_OPS_LISTEN": "127.0.0.1:0",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", service, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            first = await process.stderr.readline()
        process.terminate()
        async with asyncio.timeout(30):
            rest = await process.stderr.read()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert first, "it said why it waits"
    assert MARK.encode() not in first + rest, (first + rest).decode()
