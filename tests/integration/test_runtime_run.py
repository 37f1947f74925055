"""A service's process from its first variable to its exit code, as real processes and real signals."""

import asyncio
import json
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.waiting import eventually

ROOT = Path(__file__).parents[2]
SERVICE = """
import asyncio, sys
from headrace_core.rpc.server import GrpcServer
from headrace_core.runtime.run import run
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.settings.errors import SettingsError


class Service:
    http_address = None
    grpc_address = None

    def __init__(self, settings):
        self.settings = settings
        self.supervisor = Supervisor()
        self.server = GrpcServer(settings.listen, name="test")

    def problems(self):
        return ["Postgres does not answer"] if "unready" in sys.argv else []

    async def start(self):
        if "bad-start" in sys.argv:
            raise SettingsError("queue images is not declared")
        if "broken-start" in sys.argv:
            raise RuntimeError("broken")
        if "endless-start" in sys.argv:
            print("STARTING", flush=True)
            await asyncio.Event().wait()
        self.grpc_address = await self.server.start()
        if "fatal" in sys.argv:
            self.supervisor.spawn("puller", self.fail, on_failure="stop")

    async def fail(self):
        raise ValueError("gone")

    async def drain(self):
        print("DRAIN", flush=True)
        if "endless-drain" in sys.argv:
            await asyncio.Event().wait()

    async def stop(self):
        await self.supervisor.stop()
        await self.server.stop(0.0)
        print("STOP", flush=True)


sys.exit(run("tiny", Service, default_listen="127.0.0.1:0"))
"""


class Tiny:
    """The process, its ready file, and what it said when it had ended."""

    def __init__(self, process: asyncio.subprocess.Process, ready_file: Path) -> None:
        self.process = process
        self.ready_file = ready_file
        self.out = self.err = ""

    async def ready(self) -> dict[str, Any]:
        def read() -> dict[str, Any] | None:
            return json.loads(self.ready_file.read_text()) if self.ready_file.exists() else None

        found = await eventually(read, within=30.0, what="the ready file")
        assert found is not None
        return found

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            out, err = await self.process.communicate()
        self.out, self.err = out.decode(), err.decode()
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def tiny(tmp_path: Path, *arguments: str, **variables: str) -> AsyncIterator[Tiny]:
    script = tmp_path / "tiny.py"
    script.write_text(textwrap.dedent(SERVICE))
    ready_file = tmp_path / "ready.json"
    environ = {f"HEADRACE_{name}": value for name, value in variables.items()}
    environ |= {"PYTHONPATH": str(ROOT), "HEADRACE_READY_FILE": str(ready_file), "PATH": "/usr/bin:/bin"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, cwd=tmp_path, env=environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Tiny(process, ready_file)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def http_get(address: str, path: str) -> tuple[int, str]:
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_tells_its_addresses_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    async with tiny(tmp_path) as service:
        ready = await service.ready()
        assert ready["pid"] == service.process.pid
        assert ready["http"] is None
        assert not ready["grpc"].endswith(":0")
        assert await http_get(ready["ops"], "/livez") == (200, "ok\n")
        status, body = await http_get(ready["ops"], "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "problems": []})
        assert "headrace_background_restarts_total" in (await http_get(ready["ops"], "/metrics"))[1]
        service.process.send_signal(number)
        assert await service.ended() == 0
        assert service.out.split() == ["DRAIN", "STOP"]
        assert not service.ready_file.exists()
        assert '"action": "service.serving"' in service.err


async def test_problems_make_it_unready_and_not_dead(tmp_path: Path) -> None:
    async with tiny(tmp_path, "unready") as service:
        ready = await service.ready()
        status, body = await http_get(ready["ops"], "/readyz")
        assert (status, json.loads(body)["problems"]) == (503, ["Postgres does not answer"])
        assert (await http_get(ready["ops"], "/livez"))[0] == 200


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DATABSE_URL": "x"}, "unknown variable HEADRACE_DATABSE_URL in the environment"),
        ({"GRACE_SECONDS": "soon"}, "HEADRACE_GRACE_SECONDS = 'soon' is wrong"),
        ({"CONFIG": "missing.toml"}, "missing.toml cannot be read"),
        ({"OPS_LISTEN": "192.0.2.1:80"}, "cannot listen on 192.0.2.1:80"),
    ],
)
async def test_bad_settings_are_one_sentence_and_exit_code_2(
    tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    async with tiny(tmp_path, **variables) as service:
        assert await service.ended() == 2
    lines = [line for line in service.err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, service.err
    assert lines[0].startswith("headrace tiny: ")
    assert said in lines[0]


async def test_a_start_that_finds_bad_settings_is_exit_code_2(tmp_path: Path) -> None:
    async with tiny(tmp_path, "bad-start") as service:
        assert await service.ended() == 2
    assert "headrace tiny: queue images is not declared" in service.err
    assert service.out.split() == ["STOP"]


async def test_a_start_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    async with tiny(tmp_path, "broken-start") as service:
        assert await service.ended() == 1
    assert "service.start_failed" in service.err
    assert service.out.split() == ["STOP"]


async def test_a_signal_during_the_start_stops_cleanly(tmp_path: Path) -> None:
    async with tiny(tmp_path, "endless-start") as service:
        assert service.process.stdout is not None
        async with asyncio.timeout(30):
            assert await service.process.stdout.readline() == b"STARTING\n"
        service.process.send_signal(signal.SIGTERM)
        assert await service.ended() == 0
    assert service.out.split() == ["STOP"]


async def test_a_fatal_background_failure_is_exit_code_1_after_a_drain(tmp_path: Path) -> None:
    async with tiny(tmp_path, "fatal") as service:
        assert await service.ended() == 1
    assert '"name": "puller"' in service.err
    assert "ValueError" in service.err
    assert "gone" not in service.err, "what an exception says may be a client's"
    assert service.out.split() == ["DRAIN", "STOP"]


async def test_a_drain_has_a_limit(tmp_path: Path) -> None:
    async with tiny(tmp_path, "endless-drain", GRACE_SECONDS="0.1") as service:
        await service.ready()
        service.process.send_signal(signal.SIGTERM)
        assert await service.ended() == 1
    assert "service.drain_failed" in service.err
    assert service.out.split() == ["DRAIN", "STOP"]


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with tiny(tmp_path, "endless-drain", GRACE_SECONDS="600") as service:
        await service.ready()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.stdout is not None
        async with asyncio.timeout(30):
            assert await service.process.stdout.readline() == b"DRAIN\n"
        service.process.send_signal(signal.SIGTERM)
        assert await service.ended() == 1
    assert service.out == "", "no clean-up: it may be what hangs"


async def test_a_name_that_is_somebody_elses_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "consumer").mkdir()
    (tmp_path / "consumer" / "__init__.py").touch()
    async with tiny(tmp_path) as service:
        assert await service.ended() == 2
    assert f"the package 'consumer' is somebody else's: it resolves to {tmp_path}/consumer" in service.err
