"""Whoever shows a client certificate is who it names: over gRPC and over HTTP, on real TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace import Client, Tls
from headrace.errors import UnauthenticatedError
from headrace_core.settings.environment import load_settings
from status.app import StatusService
from tests.access_rig import write_access_file
from tests.fixtures.authority import Authority, Issued, MountedSecret

KNOWN = "spiffe://example/dashboard"
GRANTED = f'[[certificates]]\nname = "{KNOWN}"\ngrants = ["read:*"]\n'


@asynccontextmanager
async def serving(database_url: str, folder: Path, authority: Authority) -> AsyncIterator[StatusService]:
    secret = MountedSecret(folder / "tls")
    secret.put(authority.server(), authority.certificate)
    environ = {
        "HEADRACE_DATABASE_URL": database_url,
        "HEADRACE_BROKER": "none",
        "HEADRACE_HTTP_LISTEN": "127.0.0.1:0",
        "HEADRACE_TLS_CERT_FILE": str(secret.certificate),
        "HEADRACE_TLS_KEY_FILE": str(secret.key),
        "HEADRACE_TLS_CLIENT_CA_FILE": str(secret.authority),
        "HEADRACE_AUTH_FILE": str(write_access_file(folder / "access.toml", {}, GRANTED)),
    }
    service = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/")))
    try:
        await service.start()
        yield service
        await service.drain()
    finally:
        await service.stop()


class Shown:
    """A client with a certificate."""

    def __init__(self, folder: Path, authority: Authority, issued: Issued) -> None:
        folder.mkdir()
        self.authority, self.certificate, self.key = folder / "ca", folder / "certificate", folder / "key"
        self.authority.write_bytes(authority.certificate)
        self.certificate.write_bytes(issued.certificate)
        self.key.write_bytes(issued.key)

    async def asks(self, address: str) -> None:
        """Raises HeadraceError."""
        async with Client("unused:1", address, tls=Tls(self.authority, self.certificate, self.key)) as client:
            await client.system_status()

    async def gets(self, address: str) -> str:
        """The status line of /api/async-status."""
        context = ssl.create_default_context(cafile=self.authority)
        context.load_cert_chain(self.certificate, self.key)
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(b"GET /api/async-status HTTP/1.1\r\nHost: status\r\nConnection: close\r\n\r\n")
            return (await reader.readline()).decode()
        finally:
            writer.transport.abort()


async def test_a_certificate_is_an_identity_over_grpc_and_http(database_url: str, tmp_path: Path) -> None:
    authority = Authority()
    known = Shown(tmp_path / "known", authority, authority.issue(KNOWN))
    stranger = Shown(tmp_path / "stranger", authority, authority.issue("spiffe://example/stranger"))
    async with serving(database_url, tmp_path, authority) as service:
        assert service.grpc_address is not None
        assert service.http_address is not None
        await known.asks(service.grpc_address)
        with pytest.raises(UnauthenticatedError):
            await stranger.asks(service.grpc_address)
        # Without a consumer the system is not well, and says so to whoever may know.
        assert " 503 " in await known.gets(service.http_address)
        assert " 401 " in await stranger.gets(service.http_address)
