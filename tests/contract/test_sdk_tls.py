"""TLS, client certificates and tokens of the SDK and the command line, against a server that insists on them."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace import Client, SyncClient, Tls, errors, opening
from headrace.v1 import status_pb2, task_pb2
from tests.contract.scripted import TASK, Script, ScriptedServer, serving, snapshot, state
from tests.contract.test_sdk_cli import cli
from tests.contract.test_sdk_verify import HttpSide
from tests.fixtures.authority import Authority, Issued, MountedSecret

SECRET = "s3cret-token"


class Rig:
    """A server that requires client certificates, and a client's folder with all it needs."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        folder.mkdir(exist_ok=True)
        self.mine = MountedSecret(folder / "mine")
        self.mine.put(self.authority.issue("client"), self.authority.certificate)
        self.scripted = ScriptedServer(Script())

    @property
    def tls(self) -> Tls:
        return Tls(self.mine.authority, self.mine.certificate, self.mine.key)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "HEADRACE_TLS_CA_FILE": str(self.mine.authority),
            "HEADRACE_CLIENT_CERT_FILE": str(self.mine.certificate),
            "HEADRACE_CLIENT_KEY_FILE": str(self.mine.key),
        }

    def client(self, tls: Tls | bool | None, **options: Any) -> Client:
        return Client(
            self.scripted.address, self.scripted.address, tls=tls, timeout=options.pop("timeout", 2), **options
        )


def credentials(issued: Issued, clients: bytes | None) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(issued.key, issued.certificate)], clients, clients is not None)


@asynccontextmanager
async def secured(folder: Path, *, mutual: bool = True, issued: Issued | None = None) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    accepted = rig.authority.certificate if mutual else None
    async with serving(rig.scripted.script, credentials(issued or rig.authority.server(), accepted)) as rig.scripted:
        yield rig


async def message(client: Client) -> str:
    """What the client says of a server that it cannot talk to."""
    async with client:
        with pytest.raises(errors.UnavailableError) as caught:
            await client.get(TASK)
    assert type(caught.value) is errors.UnavailableError
    return caught.value.message


async def test_a_client_with_its_certificate_and_token_is_served(tmp_path: Path) -> None:
    async with secured(tmp_path) as rig:
        async with rig.client(rig.tls, token=SECRET) as client:
            assert (await client.submit("echo")).id == TASK
            rig.scripted.script.watches.append([snapshot(2, task_pb2.TASK_STATE_COMPLETED)])
            assert [event.sequence async for event in client.watch(TASK)] == [2]
        assert rig.scripted.script.identities == [f"Bearer {SECRET}"] * 2


async def test_the_sync_client_too(tmp_path: Path) -> None:
    def talk(rig: Rig) -> str:
        address = rig.scripted.address
        with SyncClient(address, address, tls=rig.tls, token=lambda: SECRET) as client:
            return client.submit("echo").id

    async with secured(tmp_path) as rig:
        assert await asyncio.to_thread(talk, rig) == TASK
        assert rig.scripted.script.identities == [f"Bearer {SECRET}"]


async def test_the_environment_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with secured(tmp_path) as rig:
        for name, value in (rig.variables | {"HEADRACE_TOKEN": SECRET}).items():
            monkeypatch.setenv(name, value)
        async with rig.client(None) as client:
            await client.submit("echo")
        monkeypatch.setenv("HEADRACE_TLS", "false")
        assert "it may speak TLS only" in await message(rig.client(None))
    assert rig.scripted.script.identities == [f"Bearer {SECRET}"]


async def test_without_a_certificate_the_client_says_where_to_look(tmp_path: Path) -> None:
    async with secured(tmp_path) as rig:
        said = await message(rig.client(Tls(rig.mine.authority)))
        assert "may require a client certificate" in said
        assert "HEADRACE_CLIENT_CERT_FILE" in said
        rig.mine.put(Authority("another").issue("a"), rig.authority.certificate)
        assert "does not take this one" in await message(rig.client(rig.tls))


@pytest.mark.parametrize(
    ("issue", "said"),
    [
        (
            lambda _rig: Authority("another").server(),
            "not believed: HEADRACE_TLS_CA_FILE must hold the one",
        ),
        (lambda rig: rig.server(days=-1), "the server's certificate has ended"),
        (lambda rig: rig.issue("elsewhere.example"), "the server's certificate is for another name"),
    ],
)
async def test_a_server_that_is_not_believed_is_told_with_the_reason(
    tmp_path: Path, issue: Callable[[Authority], Issued], said: str
) -> None:
    rig = Rig(tmp_path)
    async with serving(Script(), credentials(issue(rig.authority), None)) as rig.scripted:
        found = await message(rig.client(rig.tls))
        assert said in found
        assert f"the status service at {rig.scripted.address} did not answer" in found


async def test_tls_to_a_plain_port_and_plain_to_a_tls_port_are_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with serving(Script()) as rig.scripted:
        assert "the server speaks no TLS there: unset HEADRACE_TLS" in await message(rig.client(rig.tls))
    async with secured(tmp_path / "b", mutual=False) as rig:
        assert "it may speak TLS only (HEADRACE_TLS, HEADRACE_TLS_CA_FILE)" in await message(rig.client(False))


async def test_the_systems_authorities_do_not_know_ours(tmp_path: Path) -> None:
    async with secured(tmp_path, mutual=False) as rig:
        assert "HEADRACE_TLS_CA_FILE must hold" in await message(rig.client(True))


async def test_rotated_certificates_are_taken_while_a_watch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("headrace.rpc.RETIRED_SECONDS", 0.0)
    goes_on = asyncio.Event()
    async with secured(tmp_path) as rig:
        rig.scripted.script.watches.append(
            [state(1, task_pb2.TASK_STATE_PROCESSING), goes_on.wait, snapshot(2, task_pb2.TASK_STATE_COMPLETED)]
        )
        async with rig.client(rig.tls) as client, aclosing(client.watch(TASK, after_sequence=0)) as events:
            assert (await anext(events)).sequence == 1
            rig.mine.put(Authority("another").issue("a"), rig.authority.certificate)
            with pytest.raises(errors.UnavailableError, match="HEADRACE_CLIENT_CERT_FILE"):
                await client.get(TASK)
            rig.mine.put(Issued(b"broken", b"broken"), rig.authority.certificate)
            with pytest.raises(errors.UnavailableError, match="HEADRACE_CLIENT_CERT_FILE"):
                await client.get(TASK)  # still with the one before
            rig.mine.put(rig.authority.issue("client"), rig.authority.certificate)
            await client.get(TASK)
            goes_on.set()
            assert [event.sequence async for event in events] == [2]
    assert len(rig.scripted.script.asked("WatchTask")) == 1


async def test_channels_that_a_rotation_left_behind_are_closed_once_nobody_uses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("headrace.rpc.RETIRED_SECONDS", 0.0)
    async with secured(tmp_path) as rig, rig.client(rig.tls) as client:
        channels = []
        for _ in range(4):
            await client.get(TASK)
            channels.append(client._status.channel)
            rig.mine.put(rig.authority.issue("client"), rig.authority.certificate)
        await client.get(TASK)
        assert len(client._status._retired) <= 1
        assert channels[0].get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    monkeypatch.setenv("HEADRACE_TOKEN_FILE", str(file))
    async with serving(Script()) as scripted, Client(scripted.address, scripted.address) as client:
        await client.submit("echo")
        for content in ("second", "", "third, more than one word"):
            replacement = tmp_path / "new"
            replacement.write_text(content)
            replacement.replace(file)
            await client.submit("echo")
        file.unlink()
        await client.submit("echo")
    assert scripted.script.identities == ["Bearer first", *["Bearer second"] * 4]


async def test_a_function_is_asked_for_each_call_and_may_fail() -> None:
    tokens = iter(["a", "b", "", "d\n"])
    async with (
        serving(Script()) as scripted,
        Client(scripted.address, scripted.address, token=lambda: next(tokens)) as client,
    ):
        await client.submit("echo")
        await client.submit("echo")
        for _ in range(2):
            with pytest.raises(errors.HeadraceError, match=r"^token: ") as caught:
                await client.submit("echo")
            assert "d\n" not in caught.value.message
    assert scripted.script.identities == ["Bearer a", "Bearer b"]


@pytest.mark.parametrize("address", ["10.0.0.1:50051", "dns:///headrace-producer:50051", "ipv4:127.0.0.1:1,10.0.0.1:1"])
def test_a_token_does_not_go_unencrypted_over_a_network(address: str) -> None:
    for producer, status in ((address, "127.0.0.1:1"), ("localhost:1", address)):
        with pytest.raises(ValueError, match="a token would go unencrypted to") as caught:
            Client(producer, status, token=SECRET, tls=False)
        assert SECRET not in str(caught.value)
    Client(address, address, tls=False)
    Client(address, address, token=SECRET, tls=True)


def test_the_token_is_in_no_text_of_the_client() -> None:
    client = Client(token=SECRET)
    assert SECRET not in repr(client.config)
    assert SECRET not in repr(client.config.bearer) + str(vars(client))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HEADRACE_TLS": "yes"}, "HEADRACE_TLS = 'yes' is wrong: true or false"),
        ({"HEADRACE_TLS_CA_FILE": "/nowhere"}, "HEADRACE_TLS_CA_FILE: /nowhere cannot be read: No such file"),
        (
            {"HEADRACE_CLIENT_CERT_FILE": "/nowhere"},
            "need each other: HEADRACE_CLIENT_CERT_FILE and HEADRACE_CLIENT_KEY",
        ),
        ({"HEADRACE_TOKEN_FILE": "/nowhere"}, "HEADRACE_TOKEN_FILE: /nowhere cannot be read: No such file"),
        ({"HEADRACE_TOKEN": "a", "HEADRACE_TOKEN_FILE": "/nowhere"}, "are both set: leave one out"),
        ({"HEADRACE_TOKEN": "two words"}, "a token is one word"),
    ],
)
def test_variables_that_make_no_sense_are_named(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        Client()


async def test_the_command_line_by_variables_and_by_flags(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    async with secured(tmp_path) as rig:
        ran = await cli(rig.scripted, "submit", "echo", **rig.variables, HEADRACE_TOKEN=SECRET)
        assert (ran.code, ran.out) == (0, f"{TASK}\n")
        flags = ["--tls-ca", str(rig.mine.authority), "--client-cert", str(rig.mine.certificate)]
        flags += ["--client-key", str(rig.mine.key), "--token-file", str(token)]
        assert (await cli(rig.scripted, *flags, "submit", "echo")).code == 0
        assert (await cli(rig.scripted, "submit", "echo", *flags, HEADRACE_TOKEN="another")).code == 0
        assert rig.scripted.script.identities == [f"Bearer {SECRET}"] * 3
        plain = await cli(rig.scripted, "status", "--no-tls", **rig.variables)
        assert plain.code == 4
        assert "it may speak TLS only" in plain.err
        broken = await cli(rig.scripted, "status", "--tls-ca", str(token))
        assert broken.code == 2
        assert f"HEADRACE_TLS_CA_FILE: {token} holds no certificate in PEM" in broken.err
        assert SECRET not in broken.err


async def test_the_command_line_does_not_send_a_token_in_the_open() -> None:
    nowhere = ScriptedServer(Script())
    nowhere.address = "10.0.0.1:50051"
    ran = await cli(nowhere, "submit", "echo", HEADRACE_TOKEN=SECRET)
    assert ran.code == 2
    assert "a token would go unencrypted to 10.0.0.1:50051" in ran.err


@pytest.fixture
def side() -> HttpSide:
    return HttpSide()


async def test_verify_goes_through_https_with_the_same_files(tmp_path: Path, side: HttpSide) -> None:
    async with secured(tmp_path) as rig:
        well(rig.scripted.script)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=rig.authority.certificate.decode())
        server.verify_mode = ssl.CERT_REQUIRED
        own = tmp_path / "server.pem"
        issued = rig.authority.server()
        own.write_bytes(issued.certificate + issued.key)
        server.load_cert_chain(own)
        listening = await asyncio.start_server(side.serve, "127.0.0.1", 0, ssl=server)
        url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        arguments = ("verify", "--within", "1", "--without-analysis", "--http", url)
        ran = await cli(rig.scripted, *arguments, **rig.variables, HEADRACE_TOKEN=SECRET)
        assert (ran.code, ran.err) == (0, "")
        assert f"authorization: Bearer {SECRET}" in side.heads[-1]
        other = tmp_path / "other.crt"
        other.write_bytes(Authority("another").certificate)
        ran = await cli(rig.scripted, *arguments, "--tls-ca", str(other), **rig.variables)
        assert ran.code == 1
        assert ran.out.count("HEADRACE_TLS_CA_FILE must hold") == 3
        listening.close()


async def test_a_token_does_not_follow_a_redirection(tmp_path: Path) -> None:
    first, second = HttpSide(), HttpSide()
    servers = [await asyncio.start_server(side.serve, "127.0.0.1", 0) for side in (first, second)]
    urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
    first.code = f"302 Found\r\nLocation: {urls[1]}/api/async-status"
    script = Script()
    well(script)
    async with serving(script) as scripted:
        arguments = ("verify", "--within", "5", "--without-analysis", "--http", urls[0])
        ran = await cli(scripted, *arguments, HEADRACE_TOKEN=SECRET)
    for server in servers:
        server.close()
    assert (ran.code, ran.err) == (0, "")
    assert SECRET in first.heads[0]
    assert second.heads
    assert SECRET not in second.heads[0]


async def test_verify_does_not_send_a_token_in_the_open(tmp_path: Path) -> None:
    async with secured(tmp_path) as rig:
        ran = await cli(
            rig.scripted, "verify", "--http", "http://10.0.0.1:8080", **rig.variables, HEADRACE_TOKEN=SECRET
        )
        assert ran.code == 2
        assert "--http: a token would go unencrypted to 10.0.0.1:8080" in ran.err


def well(script: Script) -> None:
    """A server whose echo echoes."""

    def ended(_request: Any) -> status_pb2.GetTaskResponse:
        payload = script.asked("SubmitTask")[-1].payload_json
        return status_pb2.GetTaskResponse(
            task=task_pb2.Task(id=TASK, state=task_pb2.TASK_STATE_COMPLETED, result_json=payload)
        )

    found = status_pb2.SystemStatus(health=status_pb2.HEALTH_STATE_HEALTHY, mode=status_pb2.DISPATCH_MODE_BROKER)
    script.answers |= {"GetTask": ended, "GetSystemStatus": status_pb2.GetSystemStatusResponse(system_status=found)}
    script.watches.extend([[snapshot(6, task_pb2.TASK_STATE_COMPLETED)] for _ in range(2)])
