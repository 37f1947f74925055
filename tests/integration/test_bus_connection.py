"""The connection: always being made, subscriptions on every one, the state told."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.transport import TcpTransport

from headrace_core.bus.connection import Bus
from headrace_core.bus.errors import BusUnavailable, JetStreamMissing, RequestRefused, StreamMissing
from headrace_core.bus.wire import Incoming
from headrace_core.stack.binaries import nats_server as nats_program
from headrace_core.stack.child import Child
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.ports import free_port
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes buses and closes them after the test."""
    async with AsyncExitStack() as stack:

        async def make(url: str) -> Bus:
            bus = Bus(url, name="test")
            stack.push_async_callback(bus.close)
            await bus.connect(3.0)
            return bus

        yield make


async def test_it_connects_later_when_the_server_is_away(nats_server: NatsServer, connect: Connect) -> None:
    await nats_server.stop()
    bus = Bus(nats_server.url, name="test")
    states: list[bool] = []
    bus.on_state_change(states.append)
    received: list[bytes] = []
    try:
        assert await bus.connect(0.3) is False
        assert not bus.connected
        assert "connect" in bus.problem.lower()
        await bus.subscribe("greetings", lambda message: received.append(message.data))
        with pytest.raises(BusUnavailable, match="no connection"):
            await bus.send("greetings", b"lost")
        with pytest.raises(BusUnavailable):
            await bus.flush()
        await nats_server.start()
        await eventually(lambda: bus.jetstream)
        assert bus.problem == ""
        await eventually(lambda: states == [True])
        await bus.send("greetings", b"hello")
        await eventually(lambda: received == [b"hello"])
    finally:
        await bus.close()
        await bus.close()
    assert not bus.connected


async def test_subscriptions_survive_a_kill_and_the_state_is_told(nats_server: NatsServer, connect: Connect) -> None:
    bus = await connect(nats_server.url)
    states: list[bool] = []
    forget = bus.on_state_change(states.append)
    received: list[bytes] = []
    subscription = await bus.subscribe("greetings", lambda message: received.append(message.data))
    await nats_server.kill()
    await eventually(lambda: states == [False])
    await nats_server.start()
    await eventually(lambda: states == [False, True])
    await bus.send("greetings", b"back")
    await eventually(lambda: received == [b"back"])
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    await bus.send("greetings", b"unheard")
    await bus.flush()
    assert received == [b"back"]
    forget()
    await nats_server.kill()
    await eventually(lambda: not bus.connected)
    assert states == [False, True]


def socket_of(bus: Bus) -> socket.socket:
    assert bus._client is not None
    transport = bus._client._transport
    assert isinstance(transport, TcpTransport)
    assert transport._io_writer is not None
    found: socket.socket = transport._io_writer.get_extra_info("socket")
    return found


async def test_a_frozen_server_is_noticed(nats_server: NatsServer, connect: Connect) -> None:
    bus = await connect(nats_server.url)
    sock = socket_of(bus)
    nats_server.pause()
    # More than the socket's buffers hold, so that closing it in the ordinary way would wait for ever.
    for _ in range(12):
        await bus.send("noise", b"x" * 900_000)
    await eventually(lambda: not bus.connected, within=12)
    await eventually(lambda: sock.fileno() == -1)  # closed by force, nothing of it is left behind
    with pytest.raises(BusUnavailable):
        await bus.send("noise", b"x")
    nats_server.resume()
    await eventually(lambda: bus.jetstream)


async def test_what_waits_for_a_frozen_server_is_bounded(nats_server: NatsServer, connect: Connect) -> None:
    bus = await connect(nats_server.url)
    nats_server.pause()

    async def flood() -> None:
        for _ in range(100):
            await bus.send("noise", b"x" * 900_000)

    with pytest.raises(BusUnavailable):
        await flood()
    nats_server.resume()


async def test_a_request_without_an_answer_ends(nats_server: NatsServer, connect: Connect) -> None:
    async with Proxy(nats_server.port) as proxy:
        bus = await connect(proxy.url(nats_server.url))
        proxy.hold_replies()
        with pytest.raises(BusUnavailable, match=r"STREAM\.NAMES"):
            await bus.request("$JS.API.STREAM.NAMES", timeout=0.2)
        with pytest.raises(BusUnavailable, match="flush"):
            await bus.flush(0.2)
        await proxy.restore()
        await bus.request("$JS.API.STREAM.NAMES")
        await bus.flush()
        assert bus.connected, "a late answer must not break the reader"
        await bus.close()


async def test_errors_are_translated(nats_server: NatsServer, connect: Connect) -> None:
    bus = await connect(nats_server.url)
    with pytest.raises(StreamMissing, match="headrace topology apply"):
        await bus.request("$JS.API.STREAM.INFO.NOPE")
    with pytest.raises(RequestRefused):
        await bus.request("$JS.API.STREAM.CREATE.A", {"name": "B"})
    with pytest.raises(JetStreamMissing):
        await bus.request("nobody.listens.here")
    with pytest.raises(RequestRefused):
        await bus.send("a b", b"")
    with pytest.raises(RequestRefused, match="maximum payload"):
        await bus.send("a", b"x" * 2_000_000)
    assert bus.connected


async def test_a_failing_callback_does_not_end_the_subscription(nats_server: NatsServer, connect: Connect) -> None:
    bus = await connect(nats_server.url)
    received: list[bytes] = []

    def fail_first(message: Incoming) -> None:
        received.append(message.data)
        if len(received) == 1:
            raise ValueError("a defect")

    await bus.subscribe("greetings", fail_first)
    await bus.send("greetings", b"1")
    await bus.send("greetings", b"2")
    await eventually(lambda: received == [b"1", b"2"])


@asynccontextmanager
async def plain_nats(folder: Path, *arguments: str) -> AsyncIterator[str]:
    """A nats-server as somebody else configured it."""
    log = StackLog(folder / "plain.log")
    port = free_port()
    child = await Child.spawn(
        "nats", [str(nats_program()), "--addr", "127.0.0.1", "--port", str(port), *arguments], log
    )
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        await child.kill()
        log.close()


async def test_a_server_without_jetstream_is_named(tmp_path: Path, connect: Connect) -> None:
    async with plain_nats(tmp_path) as url:
        bus = await connect(url)
        assert bus.connected
        assert not bus.jetstream
        assert "no JetStream" in bus.problem
        assert "--jetstream" in bus.problem
        await bus.close()


ACCOUNTS = """
jetstream { store_dir: "%s" }
accounts {
  PLAIN { users: [{ user: plain, password: secret }] }
  STREAMS { jetstream: enabled, users: [
    { user: mute, password: secret, permissions: { publish: { deny: "$JS.API.>" } } }
  ] }
}
"""


@pytest.mark.parametrize(
    ("user", "said"), [("plain", "no JetStream for this account"), ("mute", "is $JS.API.> allowed?")]
)
async def test_missing_rights_are_named_without_the_password(
    tmp_path: Path, connect: Connect, user: str, said: str
) -> None:
    config = tmp_path / "nats.conf"
    config.write_text(ACCOUNTS % (tmp_path / "store"))
    async with plain_nats(tmp_path, "--config", str(config)) as url:
        bus = await connect(url.replace("//", f"//{user}:secret@"))
        assert bus.connected
        assert not bus.jetstream
        assert said in bus.problem
        assert "secret" not in bus.problem
        await bus.close()
        with pytest.raises(BusUnavailable) as refused:
            await bus.send("a", b"")
        assert "secret" not in refused.value.message


async def test_a_wrong_password_keeps_trying(tmp_path: Path, connect: Connect) -> None:
    async with plain_nats(tmp_path, "--user", "a", "--pass", "b") as url:
        bus = await connect(url.replace("//", "//a:wrong@"))
        assert not bus.connected
        # Now and then the server closes before its reason is read; the next attempt says it.
        await eventually(lambda: "authorization" in bus.problem.lower())
        async with asyncio.timeout(5):
            await bus.close()
