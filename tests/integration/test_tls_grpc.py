"""TLS and mutual TLS of the gRPC port: who gets in, who does not, and certificates rotated under open streams."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.rpc.peer import certificate_names
from headrace_core.rpc.server import GrpcServer
from headrace_core.settings.errors import SettingsError
from headrace_core.tls.certificates import Certificates
from headrace_core.tls.material import TlsFiles
from tests.fixtures.authority import Authority, Issued, MountedSecret
from tests.integration.rpc_rig import PRODUCER, STATUS, Producer, Status, accept, add_watch, submit, watch_task


class Rig:
    """A server on a mounted Secret, and the authority of both sides."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.secret = MountedSecret(folder / "tls")
        self.status = Status()
        self.address = ""
        self.callers: list[list[str]] = []

    def files(self, *, mutual: bool) -> TlsFiles:
        return TlsFiles(self.secret.certificate, self.secret.key, self.secret.authority if mutual else None)


class Naming(Producer):
    """Notes who calls."""

    def __init__(self, callers: list[list[str]]) -> None:
        super().__init__(accept)
        self._callers = callers

    async def SubmitTask(self, request: Any, context: Any) -> producer_pb2.SubmitTaskResponse:
        self._callers.append(certificate_names(context))
        return await super().SubmitTask(request, context)


@asynccontextmanager
async def serving(folder: Path, *, mutual: bool = False, issued: Issued | None = None) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    rig.secret.put(issued or rig.authority.server(), rig.authority.certificate)
    server = GrpcServer("127.0.0.1:0", name="test", certificates=Certificates(rig.files(mutual=mutual)))
    server.add(producer_pb2_grpc.add_ProducerServiceServicer_to_server, Naming(rig.callers), PRODUCER)
    rig.status.server = server
    server.add(add_watch, rig.status, STATUS)
    rig.address = await server.start()
    try:
        yield rig
    finally:
        await server.stop(5.0)


@asynccontextmanager
async def client(
    rig: Rig, authority: Authority | None = None, issued: Issued | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    key, chain = (issued.key, issued.certificate) if issued else (None, None)
    credentials = grpc.ssl_channel_credentials((authority or rig.authority).certificate, key, chain)
    # Channels with equal arguments would share their connections.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(rig.address, credentials, options=options) as channel:
        yield channel


async def refused(channel: grpc.aio.Channel) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await submit(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return caught.value.details() or ""


async def shown_certificate(rig: Rig) -> bytes:
    """Who a connection that begins now is served by, in DER."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = rig.address.split(":")
    _reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(found)


async def test_a_client_that_knows_the_authority_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, client(rig) as channel:
        assert (await submit(channel)).created
        assert rig.callers == [[]]


async def test_a_client_certificate_is_required_and_its_names_are_known(tmp_path: Path) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        issued = rig.authority.issue("billing.example", "spiffe://example/billing", common_name="billing")
        async with client(rig, issued=issued) as channel:
            await submit(channel)
        assert rig.callers == [["billing.example", "spiffe://example/billing", "billing"]]
        async with client(rig) as channel:
            await refused(channel)
        assert len(rig.callers) == 1


async def test_a_certificate_of_another_authority_or_that_has_ended_does_not_get_in(tmp_path: Path) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        for issued in (Authority("another").issue("a"), rig.authority.issue("a", days=-1)):
            async with client(rig, issued=issued) as channel:
                await refused(channel)
        assert rig.callers == []


async def test_a_client_does_not_talk_to_a_stranger(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, client(rig, Authority("another")) as channel:
        assert "CERTIFICATE_VERIFY_FAILED" in await refused(channel)


async def test_a_client_does_not_talk_to_another_name(tmp_path: Path) -> None:
    authority = Authority()
    issued = authority.issue("elsewhere.example")
    async with serving(tmp_path, issued=issued) as rig, client(rig, authority) as channel:
        assert "ostname Verification" in await refused(channel)


async def test_a_plain_client_is_let_go_and_others_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, client(rig) as channel:
        async with asyncio.timeout(8), grpc.aio.insecure_channel(rig.address) as plain:
            await refused(plain)
        assert (await submit(channel)).created


async def test_those_who_connect_and_say_nothing_hold_nobody_up_and_are_let_go(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig, client(rig) as channel:
        host, port = rig.address.split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
        async with asyncio.timeout(5):
            assert (await submit(channel)).created
        async with asyncio.timeout(20):
            for reader, writer in silent:
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()


async def test_an_older_tls_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=rig.authority.certificate.decode())
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        host, port = rig.address.split(":")
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection(host, int(port), ssl=context)


async def test_a_rotation_reaches_new_connections_and_leaves_open_streams_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        old, new = rig.authority, Authority("the next one")
        mine = old.issue("old")
        async with client(rig, issued=mine) as channel:
            watch = watch_task(channel)
            assert (await watch.read()).event.sequence == 1
            rig.secret.put(new.server(), new.certificate)
            async with client(rig, new, new.issue("new")) as fresh:
                assert (await submit(fresh)).created
            # The old authority is believed no longer, whether it is the server's or the client's.
            async with client(rig, old, mine) as late:
                await refused(late)
            async with client(rig, new, mine) as late:
                await refused(late)
            assert rig.callers[-1] == ["new", "somebody"]
            # The old connection goes on: for its stream, and for new calls.
            assert (await submit(channel)).created
            assert not watch.done()
            watch.cancel()


async def test_a_rotation_in_two_steps_lets_both_authorities_in(tmp_path: Path) -> None:
    async with serving(tmp_path, mutual=True) as rig:
        new = Authority("the next one")
        rig.secret.put(rig.authority.server(), rig.authority.certificate + new.certificate)
        for authority in (rig.authority, new):
            async with client(rig, issued=authority.issue("either")) as channel:
                assert (await submit(channel)).created


async def test_a_broken_rotation_is_told_once_and_the_old_certificate_stays(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        before = await shown_certificate(rig)
        rig.secret.put(Issued(rig.authority.server().certificate, rig.authority.server().key))
        with capture_logs() as logged:
            for _ in range(3):
                assert await shown_certificate(rig) == before
            async with client(rig) as channel:
                assert (await submit(channel)).created
        (line,) = [entry for entry in logged if entry["action"] == "tls.unusable"]
        assert "is not the key" in line["error"]
        with capture_logs() as logged:
            rig.secret.put(rig.authority.server())
            assert await shown_certificate(rig) != before
        assert [entry["action"] for entry in logged] == ["tls.rotated"]


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (
            lambda rig: rig.secret.certificate.unlink(),
            r"HEADRACE_TLS_CERT_FILE: .*tls.crt cannot be read: No such file",
        ),
        (lambda rig: rig.secret.put(Issued(b"no PEM", b"")), "HEADRACE_TLS_CERT_FILE: .* holds no certificate in PEM"),
        (
            lambda rig: rig.secret.put(Issued(rig.authority.server().certificate, rig.authority.server().key), b"x"),
            "HEADRACE_TLS_KEY_FILE: .*tls.key is not the key, .* of the certificate in .*KEY_VALUES_MISMATCH",
        ),
        (
            lambda rig: rig.secret.put(rig.authority.server(days=-1), rig.authority.certificate),
            "HEADRACE_TLS_CERT_FILE: .* ended on 20",
        ),
        (lambda rig: rig.secret.put(rig.authority.server(), b"x"), "HEADRACE_TLS_CLIENT_CA_FILE: .* no certificate"),
        (
            lambda rig: rig.secret.put(rig.authority.encrypted(), b"x"),
            "HEADRACE_TLS_KEY_FILE: .*tls.key is not the key, unencrypted",
        ),
    ],
)
def test_files_that_cannot_be_used_stop_the_start(tmp_path: Path, break_it: Any, said: str) -> None:
    rig = Rig(tmp_path)
    rig.secret.put(rig.authority.server(), rig.authority.certificate)
    Certificates(rig.files(mutual=True))
    break_it(rig)
    with pytest.raises(SettingsError, match=said):
        Certificates(rig.files(mutual=True))


def test_a_certificate_that_ends_soon_is_told_with_its_days(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.secret.put(rig.authority.server(days=9.5))
    with capture_logs() as logged:
        certificates = Certificates(rig.files(mutual=False))
        certificates.current()
    assert [(entry["action"], entry["days"]) for entry in logged] == [("tls.ending", 9)]
