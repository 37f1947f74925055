"""TLS of whole processes: what a service says at its start, what it refuses, and both ports of the status service."""

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from headrace import Client, SyncClient, Tls
from tests.fixtures.authority import Authority, MountedSecret
from tests.fixtures.waiting import eventually

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process(name: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    plain = {"LISTEN": "127.0.0.1:0", "HTTP_LISTEN": "127.0.0.1:0", "BROKER": "none"}
    ours = {f"HEADRACE_{key}": value for key, value in (plain | variables).items()}
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", name, env=kept | ours, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.terminate()
            async with asyncio.timeout(30):
                await started.communicate()


async def ended(started: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(30):
        _, said = await started.communicate()
    return started.returncode, said.decode()


@pytest.fixture
def secret(tmp_path: Path) -> MountedSecret:
    authority = Authority()
    found = MountedSecret(tmp_path / "tls")
    found.put(authority.server(), authority.certificate)
    mine = MountedSecret(tmp_path / "mine")
    mine.put(authority.issue("somebody"), authority.certificate)
    return found


def files(secret: MountedSecret) -> dict[str, str]:
    return {
        "TLS_CERT_FILE": str(secret.certificate),
        "TLS_KEY_FILE": str(secret.key),
        "TLS_CLIENT_CA_FILE": str(secret.authority),
    }


@pytest.mark.parametrize("name", ["producer", "status", "consumer"])
async def test_every_service_looks_at_its_certificate_before_anything_else(
    name: str, secret: MountedSecret, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere.crt"
    async with process(name, **files(secret) | {"TLS_CERT_FILE": str(nowhere)}) as started:
        code, said = await ended(started)
    assert code == 2
    assert f"headrace {name}: HEADRACE_TLS_CERT_FILE: {nowhere} cannot be read: No such file" in said


async def test_both_ports_of_the_status_service_require_certificates_and_the_ops_port_none(
    secret: MountedSecret, database_url: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    mine = tmp_path / "mine"
    tls = Tls(mine / "ca.crt", mine / "tls.crt", mine / "tls.key")
    async with process("status", **files(secret), DATABASE_URL=database_url, READY_FILE=str(ready)):
        await eventually(ready.exists, within=30)
        where = json.loads(ready.read_text())
        async with Client(where["grpc"], where["grpc"], tls=tls) as client:
            assert (await client.system_status()).mode
        await asyncio.to_thread(blocking_status, where["grpc"], tls)
        assert b'"mode"' in await get(where["http"], "/api/async-status", tls.context())
        # With an alert or without one.
        with suppress(ssl.SSLError, ConnectionResetError):
            assert await get(where["http"], "/", Tls(tls.ca_file).context()) == b""
        assert b"200 OK" in await get(where["ops"], "/livez", None)
        # A rotation, on the loop that services run on.
        new = Authority("the next one")
        secret.put(new.server(), new.certificate)
        with pytest.raises(ssl.SSLCertVerificationError):
            await get(where["http"], "/", tls.context())


async def test_strangers_write_nothing_into_the_log(secret: MountedSecret, database_url: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    async with process("status", **files(secret), DATABASE_URL=database_url, READY_FILE=str(ready)) as started:
        await eventually(ready.exists, within=30)
        for port in ("grpc", "http"):
            with suppress(ConnectionResetError):
                assert await get(json.loads(ready.read_text())[port], "/", None) == b""
        started.terminate()
        code, said = await ended(started)
    assert code == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line for line in lines if line["level"] not in {"info", "debug"}] == []


def blocking_status(address: str, tls: Tls) -> None:
    with SyncClient(address, address, tls=tls) as client:
        assert client.system_status().mode


async def get(address: str, path: str, context: ssl.SSLContext | None) -> bytes:
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.transport.abort()


async def test_ports_that_others_reach_without_tls_are_told_once() -> None:
    everywhere: dict[str, str] = {"LISTEN": "0.0.0.0:0", "HTTP_LISTEN": "0.0.0.0:0"}
    # A database that is not there keeps the service starting for a minute; the warning does not wait for it.
    async with process("status", DATABASE_URL="postgresql://127.0.0.1:1/x", **everywhere) as started:
        assert started.stderr is not None
        async with asyncio.timeout(30):
            line: dict[str, Any] = json.loads(await started.stderr.readline())
        assert line["action"] == "tls.off"
        assert line["level"] == "warning"
        assert line["listen"] == ["0.0.0.0:0", "0.0.0.0:0"]


async def test_required_security_refuses_to_start_without_tls(secret: MountedSecret) -> None:
    async with process("producer", LISTEN="0.0.0.0:0", REQUIRE_AUTH="true") as started:
        code, said = await ended(started)
    assert code == 2
    assert said == (
        "headrace producer: HEADRACE_REQUIRE_AUTH = true and no TLS on 0.0.0.0:0: set HEADRACE_TLS_CERT_FILE and "
        "HEADRACE_TLS_KEY_FILE, or listen on 127.0.0.1 only\n"
    )
