"""The composition of the local stack and `headrace dev`, with stand-ins for the services."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from headrace_core.stack.dev import LocalStack, StackOptions
from headrace_core.stack.errors import StackError
from tests.fixtures.fake_services import lay_fake_services
from tests.fixtures.waiting import eventually

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder whose producer, consumer and status are stand-ins."""
    working = tmp_path / "work"
    working.mkdir()
    lay_fake_services(working)
    return working


def stack_in(folder: Path, *, consumers: int = 2) -> LocalStack:
    options = StackOptions(folder / "data", consumers=consumers, handlers=("a", "b"), working_folder=folder)
    return LocalStack(folder / "data", options=options)


async def first_value(url: str, statement: str) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode())
        row = (1,) if cursor.description is None else await cursor.fetchone()
    assert row is not None
    return row[0]


async def test_everything_serves_inside_and_nothing_after(folder: Path) -> None:
    async with stack_in(folder) as stack:
        endpoints = json.loads((folder / "data" / "endpoints.json").read_text())
        assert endpoints == {
            "producer": stack.endpoints.producer,
            "status": stack.endpoints.status,
            "http": stack.endpoints.http,
            "databaseUrl": stack.endpoints.database_url,
            "natsUrl": stack.endpoints.nats_url,
        }
        assert endpoints["http"].startswith("http://127.0.0.1:")
        assert await first_value(endpoints["databaseUrl"], "select count(*) from headrace_core.migrations") != 0
        assert sorted(stack.services) == ["consumer-1", "consumer-2", "producer", "status"]
        assert all(holds_the_lock(pid, stack.data_dir) for pid in (stack.postgres.pid, stack.nats.pid))
        extra = await stack.add_consumer()
        assert extra.name == "consumer-3"
        assert extra.running
    assert not (folder / "data" / "endpoints.json").exists()
    assert not any(service.running for service in stack.services.values())
    text = stack.log_file.read_text()
    assert text.count("consumer ends cleanly") == 3
    assert "consumer serves with handlers a,b" in text


def holds_the_lock(pid: int | None, folder: Path) -> bool:
    """Whether a server keeps the folder's lock as long as it lives (true where /proc cannot tell)."""
    descriptors = Path(f"/proc/{pid}/fd")
    if not descriptors.exists():
        return True
    return str(folder / "lock") in {str(descriptor.readlink()) for descriptor in descriptors.iterdir()}


async def test_a_second_start_finds_the_data(folder: Path) -> None:
    async with stack_in(folder, consumers=0) as stack:
        await first_value(stack.endpoints.database_url, "create table kept as select 7")
    async with stack_in(folder, consumers=0) as stack:
        assert await first_value(stack.endpoints.database_url, "select * from kept") == 7


async def test_a_part_that_dies_comes_back_where_it_was(folder: Path) -> None:
    async with stack_in(folder, consumers=1) as stack:
        before = stack.endpoints
        for name in ("consumer-1", "producer"):
            first = stack.services[name].pid
            stack.services[name].send(signal.SIGKILL)
            await eventually(came_back(stack, name, first), within=15)
        await stack.postgres.kill()
        await eventually(
            lambda: first_value(before.database_url, "select 1"), within=20, ignoring=(psycopg.OperationalError,)
        )
        await stack.nats.kill()
        await eventually(lambda: can_connect(before.nats_url), within=15)
        assert stack.services["producer"].addresses.grpc == before.producer


def came_back(stack: LocalStack, name: str, first: int | None) -> Callable[[], bool]:
    return lambda: stack.services[name].running and stack.services[name].pid != first


async def can_connect(url: str) -> bool:
    try:
        _, writer = await asyncio.open_connection(*url.removeprefix("nats://").split(":"))
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def test_a_part_that_was_killed_on_purpose_stays_away(folder: Path) -> None:
    async with stack_in(folder, consumers=1) as stack:
        await stack.kill_part("consumer-1")
        await stack.stop_part("nats")
        assert not stack.services["consumer-1"].running
        assert not await can_connect(stack.endpoints.nats_url)
        await stack.start_part("nats")
        await stack.start_part("consumer-1")
        assert await can_connect(stack.endpoints.nats_url)
        assert stack.services["consumer-1"].running


async def test_a_service_that_cannot_start_stops_the_rest(folder: Path) -> None:
    (folder / "refuse-status").touch()
    with pytest.raises(StackError, match=r"status ended \(exit code 1\) before serving.*\n  refused on purpose"):
        await stack_in(folder).__aenter__()
    (folder / "refuse-status").unlink()
    async with stack_in(folder):
        pass  # the folder is free again


Dev = Callable[..., Awaitable[Process]]


@pytest.fixture
async def dev(folder: Path) -> AsyncIterator[Dev]:
    """Start `headrace dev` on free ports in a process of its own; killed at the end if it still runs."""
    processes: list[Process] = []

    async def start(*arguments: str) -> Process:
        ports = ["--producer-port", "0", "--status-port", "0", "--http-port", "0"]
        program = [sys.executable, "-c", "from headrace_core.cli.dev import app; app()", *ports, *arguments]
        path = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        process = await asyncio.create_subprocess_exec(*program, cwd=folder, stdout=PIPE, stderr=PIPE, env=path)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_ready(process: Process) -> list[str]:
    """Read standard output up to `ready`."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(40):
        while line := (await process.stdout.readline()).decode():
            lines.append(line.rstrip("\n"))
            if lines[-1] == "ready":
                return lines
        assert process.stderr is not None
        raise AssertionError(f"no ready line: {lines} {(await process.stderr.read()).decode()}")


async def ended(process: Process) -> tuple[int, str, str]:
    async with asyncio.timeout(40):
        out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_dev_says_ready_last_and_ends_with_zero(dev: Dev, folder: Path, number: signal.Signals) -> None:
    process = await dev("--consumers", "1")
    lines = await until_ready(process)
    assert [line.split()[0] for line in lines] == ["producer", "status", "http", "database", "nats", "ready"]
    endpoints = json.loads((folder / ".headrace" / "endpoints.json").read_text())
    assert lines[0].split()[1] == endpoints["producer"]
    process.send_signal(number)
    code, out, error = await ended(process)
    assert (code, out) == (0, "")
    assert re.search(r"^consumer-1 \| consumer ends cleanly$", error, re.MULTILINE)
    assert "consumer ends cleanly" in (folder / ".headrace" / "headrace.log").read_text()


async def test_dev_stops_cleanly_while_it_starts(dev: Dev, folder: Path) -> None:
    process = await dev()
    await eventually((folder / ".headrace" / "postgres").exists, within=20)
    process.send_signal(signal.SIGTERM)
    code, out, _ = await ended(process)
    assert (code, out) == (0, "")


async def test_a_second_dev_on_the_folder_is_one_sentence(dev: Dev) -> None:
    first = await dev()
    await until_ready(first)
    code, out, error = await ended(await dev())
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"headrace dev: the data folder \S+/\.headrace is in use by another Headrace stack \(process {first.pid}\)\n",
        error,
    )


async def test_a_port_in_use_is_one_sentence(dev: Dev) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, error = await ended(await dev("--status-port", str(port)))
    assert (code, out) == (1, "")
    assert error.startswith(f"headrace dev: port {port} (--status-port) cannot be used: Address already in use")
    assert error.count("\n") == 1


async def test_an_unwritable_folder_is_one_sentence(dev: Dev, folder: Path) -> None:
    (folder / "file").touch()
    code, out, error = await ended(await dev("--data-dir", "file/data"))
    assert (code, out) == (1, "")
    assert re.fullmatch(r"headrace dev: cannot write to the data folder \S+/file/data: Not a directory\n", error)


async def test_a_misspelt_variable_is_said_before_anything_starts(
    dev: Dev, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_LOG_LEVLE", "debug")
    code, out, error = await ended(await dev())
    assert (code, out) == (1, "")
    assert "HEADRACE_LOG_LEVLE" in error
    assert error.count("\n") == 1
    assert not (folder / ".headrace").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
async def test_a_killed_dev_leaves_nothing_and_starts_again_at_once(dev: Dev, folder: Path) -> None:
    first = await dev()
    await until_ready(first)
    first.kill()
    await first.wait()
    again = await dev()
    await until_ready(again)
    again.send_signal(signal.SIGTERM)
    assert (await ended(again))[0] == 0
