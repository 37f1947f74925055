"""TLS and mutual TLS of the HTTP port, by the same files."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from structlog.testing import capture_logs

from headrace_core.runtime.http import HttpServer
from headrace_core.tls.certificates import Certificates
from headrace_core.tls.material import TlsFiles
from tests.fixtures.authority import Authority, Issued, MountedSecret


class Rig:
    """A server on a mounted Secret, and the authority of both sides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.secret = MountedSecret(folder / "tls")
        self.address = ""
        self.holding = asyncio.Event()
        self.held = asyncio.Event()

    async def names(self, request: Request) -> Response:
        return JSONResponse([request.url.scheme, *request.state.certificate_names])

    async def hold(self, _request: Request) -> Response:
        self.held.set()
        await self.holding.wait()
        return JSONResponse(["held"])

    def context(self, authority: Authority | None = None, issued: Issued | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=(authority or self.authority).certificate.decode())
        if issued is not None:
            mine = self.folder / "mine.pem"
            mine.write_bytes(issued.certificate + issued.key)
            context.load_cert_chain(mine)
        return context

    async def get(self, context: ssl.SSLContext | None, path: str = "/") -> str:
        host, port = self.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read()).decode().partition("\r\n\r\n")[2]
        finally:
            writer.transport.abort()

    async def is_refused(self, context: ssl.SSLContext | None) -> bool:
        """With an alert or without one: in TLS 1.3 a client learns of it after its own half of the handshake."""
        try:
            return await self.get(context) == ""
        except (ssl.SSLError, ConnectionResetError):
            return True


@asynccontextmanager
async def serving(folder: Path, *, mutual: bool = False) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    rig.secret.put(rig.authority.server(), rig.authority.certificate)
    files = TlsFiles(rig.secret.certificate, rig.secret.key, rig.secret.authority if mutual else None)
    app = Starlette(routes=[Route("/", rig.names), Route("/hold", rig.hold)])
    server = HttpServer(app, "127.0.0.1:0", certificates=Certificates(files))
    rig.address = await server.start()
    try:
        async with asyncio.timeout(30):
            yield rig
    finally:
        await server.stop()


async def test_a_client_that_knows_the_authority_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        assert await rig.get(rig.context()) == '["https"]'
        with pytest.raises(ssl.SSLCertVerificationError):
            await rig.get(rig.context(Authority("another")))


async def test_a_client_certificate_is_required_and_its_names_are_known(tmp_path: Path) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        issued = rig.authority.issue("billing.example", "spiffe://example/billing", common_name="billing")
        found = await rig.get(rig.context(issued=issued))
        assert found == '["https","billing.example","spiffe://example/billing","billing"]'
        for stranger in (None, Authority("another").issue("a"), rig.authority.issue("a", days=-1)):
            assert await rig.is_refused(rig.context(issued=stranger))


async def test_a_plain_client_gets_nothing_and_others_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        host, port = rig.address.split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        assert await rig.is_refused(None)
        assert await rig.get(rig.context()) == '["https"]'
        for _reader, writer in silent:
            writer.transport.abort()


async def test_a_rotation_reaches_new_connections_and_not_those_that_are_open(tmp_path: Path) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        old, new = rig.authority, Authority("the next one")
        mine = old.issue("old")
        open_request = asyncio.create_task(rig.get(rig.context(issued=mine), "/hold"))
        await rig.held.wait()
        rig.secret.put(new.server(), new.certificate)
        assert await rig.get(rig.context(new, new.issue("new"))) == '["https","new","somebody"]'
        assert await rig.is_refused(rig.context(new, mine))
        rig.holding.set()
        assert await open_request == '["held"]'


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed_that_a_rotation_has_ended(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        context = rig.context(issued=rig.authority.issue("old"))
        context.minimum_version = context.maximum_version = version
        answer, session = await asyncio.to_thread(talk, rig.address, context)
        assert answer.startswith(b"HTTP/1.1 200")
        # The client goes on believing the server, and the server believes clients of another authority only.
        rig.secret.put(rig.authority.server(), Authority("the next one").certificate)
        with suppress(ssl.SSLError, ConnectionResetError):
            answer, _session = await asyncio.to_thread(talk, rig.address, context, session)
            assert answer == b""


def talk(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None]:
    """What a request was answered, and the session that may be resumed."""
    host, port = address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=host, session=session) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return connection.recv(100), connection.session


async def test_a_broken_rotation_is_told_once_and_the_old_certificate_stays(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        rig.secret.put(Issued(b"", b""))
        with capture_logs() as logged:
            for _ in range(3):
                assert await rig.get(rig.context()) == '["https"]'
        assert [entry["action"] for entry in logged] == ["tls.unusable"]
