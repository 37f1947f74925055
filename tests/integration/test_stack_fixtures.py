"""The tests' own tools: waiting has a bound, the wire can be cut, leaks are found."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fixtures import leaks
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually


async def test_eventually_returns_what_it_waited_for() -> None:
    values = iter([0, None, "there"])
    assert await eventually(lambda: next(values)) == "there"


async def test_eventually_is_bounded_and_says_what_it_saw() -> None:
    with pytest.raises(AssertionError, match=r"the light did not hold within 0\.05 s; last: 0"):
        await eventually(lambda: 0, within=0.05, what="the light")
    with pytest.raises(AssertionError, match="last: ValueError"):
        await eventually(lambda: int("x"), within=0.05, ignoring=(ValueError,))
    with pytest.raises(AssertionError, match="did not return"):
        await eventually(asyncio.Event().wait, within=0.05)
    with pytest.raises(ValueError, match="invalid literal"):
        await eventually(lambda: int("x"))


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_the_wire_can_be_held_cut_and_restored(echo_port: int) -> None:
    async with Proxy(echo_port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        proxy.hold_replies()
        writer.write(b"two\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readline()
        await proxy.restore()
        assert await reader.readline() == b"two\n"
        await proxy.cut()
        assert proxy.connections == 0
        with pytest.raises(ConnectionError):
            await lost(reader)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.close()
        await proxy.restore()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"three\n")
        assert await reader.readline() == b"three\n"
        writer.close()
        await writer.wait_closed()


async def lost(reader: asyncio.StreamReader) -> None:
    if not await reader.readline():
        raise ConnectionError("the other side closed")


def test_a_leftover_thread_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.1)
    before = leaks.named_threads(), leaks.child_processes()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left-behind")
    thread.start()
    assert leaks._left_after(*before) == ["thread left-behind"]
    end.set()
    thread.join()
    assert leaks._left_after(*before) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed by /proc")
async def test_a_leftover_process_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "SETTLE_SECONDS", 0.1)
    before = leaks.named_threads(), leaks.child_processes()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
    try:
        (line,) = await asyncio.to_thread(leaks._left_after, *before)
        assert line.startswith(f"process {child.pid}: ")
    finally:
        child.kill()
        await child.wait()
