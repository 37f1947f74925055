"""What happens to open streams and to the HTTP side when access changes; and how a service starts without any."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.v1 import producer_pb2, producer_pb2_grpc, status_pb2, status_pb2_grpc
from headrace_core.access import gate as gate_module
from headrace_core.access import table as table_module
from headrace_core.access.gate import Gate
from headrace_core.db.pool import Database
from headrace_core.settings.environment import load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.tls.exposure import is_loopback
from status.app import StatusService
from tests.access_rig import Issuer, as_, bearer, jwt_table, reason_of, token_of, write_access_file
from tests.factories import submitted
from tests.integration import rpc_rig


@asynccontextmanager
async def status_service(database_url: str, path: Path) -> AsyncIterator[tuple[StatusService, Any]]:
    environ = {
        "HEADRACE_DATABASE_URL": database_url,
        "HEADRACE_HTTP_LISTEN": "127.0.0.1:0",
        "HEADRACE_BROKER": "none",
        "HEADRACE_AUTH_FILE": str(path),
    }
    service = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/")))
    try:
        await service.start()
        async with grpc.aio.insecure_channel(str(service.grpc_address)) as channel:
            yield service, status_pb2_grpc.StatusServiceStub(channel)
        await service.drain()
    finally:
        await service.stop()


@pytest.fixture
async def task_id(database_url: str) -> AsyncIterator[str]:
    db = Database(database_url, max_size=1)
    await db.open()
    yield str((await submitted(db, namespace="own")).id)
    await db.close()


async def drained(call: Any) -> None:
    """Read a stream to its end."""
    while await call.read() is not grpc.aio.EOF:
        pass


async def ending(call: Any, within: float) -> str:
    """The reason with which an open stream ends."""
    async with asyncio.timeout(within):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drained(call)
    return reason_of(caught.value)


def watch(stub: Any, task_id: str, metadata: Any) -> Any:
    return stub.WatchTask(status_pb2.WatchTaskRequest(id=task_id), metadata=metadata)


async def test_the_watch_of_a_removed_token_ends_and_others_go_on(
    database_url: str, tmp_path: Path, task_id: str
) -> None:
    path = write_access_file(
        tmp_path / "access.toml", {"gone": ["read:own"], "less": ["read:*"], "stays": ["read:own"]}
    )
    async with status_service(database_url, path) as (_, stub):
        calls = {name: watch(stub, task_id, as_(name)) for name in ("gone", "less", "stays")}
        for call in calls.values():
            assert (await call.read()).event.HasField("snapshot")
        write_access_file(path, {"less": ["read:own"], "stays": ["read:own", "submit:own"]})
        # A look each second, and no waiting for the next recheck where the file has changed.
        assert await ending(calls["gone"], 4.0) == "UNAUTHENTICATED"
        assert await ending(calls["less"], 4.0) == "GRANTS_CHANGED"
        resumed = watch(stub, task_id, as_("less"))
        assert (await resumed.read()).event.HasField("snapshot")
        assert not calls["stays"].done()
        for call in (resumed, calls["stays"]):
            call.cancel()


async def test_the_watch_of_an_expired_token_ends(
    database_url: str, tmp_path: Path, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "RECHECK_SECONDS", 0.2)
    monkeypatch.setattr(gate_module, "LOOK_SECONDS", 0.1)
    issuer = Issuer()
    (tmp_path / "keys.json").write_bytes(issuer.jwks())
    table = jwt_table('jwks_file = "keys.json"', leeway="0.0")
    path = write_access_file(tmp_path / "access.toml", {}, table)
    async with status_service(database_url, path) as (_, stub):
        end = int(time.time()) + 2
        call = watch(stub, task_id, bearer(issuer.token(exp=end)))
        assert (await call.read()).event.HasField("snapshot")
        assert await ending(call, 6.0) == "UNAUTHENTICATED"
        assert end - 0.01 <= time.time() < end + 2


async def test_a_method_without_a_row_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_access_file(tmp_path / "access.toml", {"root": ["admin:*"]})
    less = {method: row for method, row in table_module.TABLE.items() if not method.endswith("/SubmitTask")}
    monkeypatch.setattr(table_module, "TABLE", less)
    settings = load_settings({"HEADRACE_AUTH_FILE": str(path)}, default_listen="127.0.0.1:0", cwd=Path("/"))
    async with rpc_rig.serving(gate=Gate.of(settings, [])) as (_, channel):
        stub: Any = producer_pb2_grpc.ProducerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SubmitTask(producer_pb2.SubmitTaskRequest(), metadata=as_("root"))
    assert reason_of(caught.value) == "PERMISSION_DENIED"
    assert "SubmitTask" in (caught.value.details() or "")


async def test_bytes_that_are_no_message_tell_a_stranger_nothing(tmp_path: Path) -> None:
    path = write_access_file(tmp_path / "access.toml", {"ci": ["submit:own"]})
    settings = load_settings({"HEADRACE_AUTH_FILE": str(path)}, default_listen="127.0.0.1:0", cwd=Path("/"))
    async with rpc_rig.serving(gate=Gate.of(settings, [])) as (_, channel):
        method: Any = channel.unary_unary(rpc_rig.SUBMIT)
        for metadata, reason in (((), "UNAUTHENTICATED"), (as_("ci"), "MALFORMED_MESSAGE")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"\xff\xff", metadata=metadata)
            assert reason_of(caught.value) == reason


# -- HTTP ---------------------------------------------------------------------------------------------------------


async def get(service: StatusService, path: str, authorization: str = "") -> tuple[int, dict[str, str], Any]:
    host, _, port = str(service.http_address).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    extra = f"Authorization: {authorization}\r\n" if authorization else ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{extra}\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, json.loads(body)


async def test_the_http_side_asks_for_the_same_identity(database_url: str, tmp_path: Path) -> None:
    path = write_access_file(tmp_path / "access.toml", {"reader": ["read:own"], "sender": ["submit:own"]})
    async with status_service(database_url, path) as (service, _):
        for page in ("/api/async-status", "/api/ai-status"):
            code, headers, content = await get(service, page)
            assert (code, headers["www-authenticate"]) == (401, "Bearer")
            assert content["error"]["reason"] == "UNAUTHENTICATED"
            code, _, content = await get(service, page, f"Bearer {token_of('sender')}")
            assert (code, content["error"]["reason"]) == (403, "PERMISSION_DENIED")
            code, _, content = await get(service, page, f"Bearer {token_of('reader')}")
            assert code in (200, 503)
            assert "status" in content
        assert (await get(service, "/"))[0] == 401
        assert (await get(service, "/", f"Bearer {token_of('sender')}"))[0] == 403
        assert (await get(service, "/other", f"Bearer {token_of('reader')}"))[0] == 403


# -- the start ----------------------------------------------------------------------------------------------------


def test_a_service_that_is_open_to_a_network_says_so_once(capfd: pytest.CaptureFixture[str]) -> None:
    settings = load_settings({}, default_listen="0.0.0.0:1", cwd=Path("/"))
    assert Gate.of(settings, ["127.0.0.1:1", "[::1]:2", "localhost:3"]) is None
    assert "auth.off" not in "".join(capfd.readouterr())
    assert Gate.of(settings, ["0.0.0.0:1", "10.0.0.1:2"]) is None
    assert "".join(capfd.readouterr()).count("auth.off") == 1


def test_it_does_not_start_so_where_authentication_is_required() -> None:
    settings = load_settings({"HEADRACE_REQUIRE_AUTH": "true"}, default_listen="0.0.0.0:1", cwd=Path("/"))
    with pytest.raises(SettingsError, match="HEADRACE_AUTH_FILE"):
        Gate.of(settings, ["0.0.0.0:1"])
    assert Gate.of(settings, ["127.0.0.1:1"]) is None


@pytest.mark.parametrize(
    ("listen", "said"), [("127.8.0.1:1", True), ("[::]:1", False), ("host:1", False), ("0.0.0.0:1", False)]
)
def test_what_is_loopback(listen: str, said: bool) -> None:
    assert is_loopback(listen) is said


@pytest.mark.parametrize("service", ["producer", "status"])
async def test_a_bad_file_ends_the_start_with_code_2_and_one_sentence(tmp_path: Path, service: str) -> None:
    path = tmp_path / "access.toml"
    path.write_text("[[tokens]]\nname = 'a'\nsha256 = 'my-secret'\ngrants = ['read:*']", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", service,
        env={"HEADRACE_AUTH_FILE": str(path), "HEADRACE_LISTEN": "127.0.0.1:0", "PATH": ""},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert "sha256 must be" in said.decode()
    assert len(said.decode().splitlines()) == 1
    assert "my-secret" not in said.decode()
