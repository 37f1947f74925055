"""The tools of a run: what a wire does, which processes a signal reaches, what a counter says."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.processes import is_alive, send_to_tree
from tests.faults.scraping import parsed
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

EXPOSITION = """
# TYPE headrace_claims_total counter
headrace_claims_total{queue="faults",source="broker"} 7.0
# TYPE headrace_claims_created gauge
headrace_claims_created{queue="faults",source="broker"} 1.7e+09
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1234.5
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


@pytest.fixture
async def wire() -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def test_a_delayed_wire_is_late_in_both_directions(wire: Proxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    wire.delay(0.2)
    begun = time.monotonic()
    writer.write(b"hello")
    assert await reader.read(100) == b"hello"
    assert time.monotonic() - begun >= 0.4
    await wire.restore()
    writer.write(b"again")
    assert await reader.read(100) == b"again"
    writer.close()


async def test_a_half_closed_wire_says_no_more_and_still_takes(wire: Proxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    await eventually(lambda: wire.connections == 1)
    wire.half_close()
    assert await reader.read(100) == b""
    writer.write(b"hello")
    await writer.drain()
    assert wire.connections == 1
    writer.close()
    await eventually(lambda: wire.connections == 0)


async def test_a_half_closed_wire_connects_anew(wire: Proxy) -> None:
    _, old = await asyncio.open_connection("127.0.0.1", wire.port)
    await eventually(lambda: wire.connections == 1)
    wire.half_close()
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(b"hello")
    assert await reader.read(100) == b"hello"
    old.close()
    writer.close()


async def test_a_signal_reaches_the_children_too() -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220 - started once, and only its id is used
        [sys.executable, "-c", PARENT], start_new_session=True
    )
    try:
        (child,) = await eventually(lambda: _children(parent.pid))
        # Until then its parent waits in vfork, where no signal reaches it.
        await eventually(lambda: "subprocess" not in Path(f"/proc/{child}/cmdline").read_text())
        send_to_tree(parent.pid, signal.SIGSTOP)
        await eventually(lambda: _state(parent.pid) == _state(child) == "T")
        send_to_tree(parent.pid, signal.SIGCONT)
        await eventually(lambda: "T" not in {_state(parent.pid), _state(child)})
        assert is_alive(child)
    finally:
        send_to_tree(parent.pid, signal.SIGKILL)
        parent.wait(10)
    await eventually(lambda: not is_alive(child))
    assert not is_alive(parent.pid)


def test_counters_are_told_apart_from_everything_else() -> None:
    started, counters = parsed(EXPOSITION)
    assert started == 1234.5
    assert counters == {("headrace_claims_total", (("queue", "faults"), ("source", "broker"))): 7.0}


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
