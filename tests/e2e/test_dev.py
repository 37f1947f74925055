"""`headrace dev` as a user types it: real services, a handler module in the working folder, data that stay."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace import Client
from headrace.v1 import task_pb2

HANDLERS = """
from headrace import handler

@handler("shout")
async def shout(ctx, input: dict) -> dict:
    return {"text": input["text"].upper()}
"""
READY_SECONDS = 60
STOP_SECONDS = 40


@pytest.fixture
def working_folder(tmp_path: Path) -> Path:
    (tmp_path / "my_handlers.py").write_text(HANDLERS)
    return tmp_path


@asynccontextmanager
async def dev(folder: Path) -> AsyncIterator[Process]:
    """Run `headrace dev` until SIGTERM, and see it end with 0."""
    ports = ["--producer-port", "0", "--status-port", "0", "--http-port", "0"]
    program = [sys.executable, "-m", "headrace.cli", "dev", "--handlers", "my_handlers", "--consumers", "1", *ports]
    with (folder / "stderr").open("w") as errors:
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        process = await asyncio.create_subprocess_exec(
            *program, cwd=folder, stdout=PIPE, stderr=errors, env=environment
        )
    try:
        await until_ready(process, folder)
        yield process
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_SECONDS):
            assert await process.wait() == 0, (folder / "stderr").read_text()[-2000:]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_ready(process: Process, folder: Path) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(READY_SECONDS):
        while line := await process.stdout.readline():
            if line == b"ready\n":
                return
    raise AssertionError(f"headrace dev was never ready: {(folder / 'stderr').read_text()[-2000:]}")


def client_of(folder: Path) -> Client:
    endpoints = json.loads((folder / ".headrace" / "endpoints.json").read_text())
    return Client(producer=endpoints["producer"], status=endpoints["status"])


@pytest.mark.timeout(180)
async def test_a_handler_of_the_working_folder_runs_and_its_task_is_there_after_a_restart(
    working_folder: Path,
) -> None:
    async with dev(working_folder), client_of(working_folder) as client:
        # Every kind is registered when `ready` is said, so this submit cannot be refused.
        task = await client.submit("shout", {"text": "water"})
        assert await client.result(task.id, timeout=20) == {"text": "WATER"}
    assert not (working_folder / ".headrace" / "endpoints.json").exists()
    async with dev(working_folder), client_of(working_folder) as client:
        again = await client.get(task.id)
        assert again.state == task_pb2.TaskState.TASK_STATE_COMPLETED
        assert await client.result(task.id, timeout=20) == {"text": "WATER"}
        second = await client.submit("shout", {"text": "wheel"})
        assert await client.result(second.id, timeout=20) == {"text": "WHEEL"}
