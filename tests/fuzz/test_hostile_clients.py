"""Clients that hold, flood and inflate, over real sockets: others are served meanwhile, and everything comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.v1 import producer_pb2, producer_pb2_grpc, task_pb2
from headrace_core.rpc.admission import MAX_STREAMS_PER_CLIENT
from headrace_core.rpc.answers import MAX_UNSENT_BYTES
from headrace_core.rpc.server import HANDSHAKE_SECONDS, MAX_METADATA_BYTES, MAX_REQUEST_BYTES, GrpcServer
from headrace_core.runtime import http_bounds
from headrace_core.runtime.http import HttpServer
from headrace_core.runtime.ops import ops_app
from tests.fixtures.waiting import eventually
from tests.fuzz.raw_http2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    RawHttp2,
    frame,
    headers_block,
    opened,
    request_fields,
)
from tests.fuzz.wire_forms import framed
from tests.integration.rpc_rig import PRODUCER, SUBMIT, Producer, submit

IDLE = 2_000
SERVED_WITHIN = 2.0
"""Seconds for somebody else's call meanwhile, on a machine that is busy with the attack as well."""
GROWTH_BYTES = 256 * 1024 * 1024


async def others_are_served(channel: grpc.aio.Channel) -> float:
    """The seconds that a call of a client who means well takes."""
    began = time.monotonic()
    await submit(channel, timeout=SERVED_WITHIN)
    return time.monotonic() - began


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@contextlib.asynccontextmanager
async def rpc_server(producer: Producer | None = None) -> AsyncIterator[tuple[str, grpc.aio.Channel]]:
    """A server whose SubmitTask accepts, its address, and the channel of somebody who means well."""
    server = GrpcServer("127.0.0.1:0", name="attacked")
    server.add(producer_pb2_grpc.add_ProducerServiceServicer_to_server, producer or Producer(), PRODUCER)
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            await submit(channel)
            yield address, channel
    finally:
        await server.stop(0.0)


@contextlib.asynccontextmanager
async def http_server() -> AsyncIterator[str]:
    server = HttpServer(ops_app(list), "127.0.0.1:0", name="attacked")
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


async def livez(address: str) -> bytes:
    """The first line of the answer that somebody who means well gets in time."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(SERVED_WITHIN):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer.partition(b"\r\n")[0]


def connect(address: str, count: int, first: bytes) -> list[socket.socket]:
    """So many connections, each of which has sent `first` and nothing more."""
    host, _, port = address.rpartition(":")
    found = []
    for _ in range(count):
        found.append(socket.create_connection((host, int(port)), timeout=5))
        found[-1].sendall(first)
    return found


def ended(one: socket.socket) -> bool:
    """Whether the server has hung up."""
    one.settimeout(0.001)
    try:
        while one.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


async def meanwhile(channel: grpc.aio.Channel, attack: Callable[[], Any]) -> Any:
    """Run `attack` in a thread; others are served all along."""
    attacking = asyncio.ensure_future(asyncio.to_thread(attack))
    while not attacking.done():
        await others_are_served(channel)
        await asyncio.wait([attacking], timeout=0.05)
    await others_are_served(channel)
    return attacking.result()


@pytest.mark.parametrize(
    "first", [b"", PREFACE[:10], PREFACE + frame(SETTINGS, 0, 0)], ids=["silent", "half", "settings"]
)
async def test_two_thousand_connections_that_do_nothing_stop_nobody(first: bytes) -> None:
    async with rpc_server() as (address, channel):
        before, memory = descriptors(), resident()
        sockets = await meanwhile(channel, lambda: connect(address, IDLE, first))
        assert resident() - memory < GROWTH_BYTES
        for one in sockets:
            one.close()
        await eventually(lambda: descriptors() <= before + 5, within=10, what="the descriptors that return")


async def test_who_never_greets_is_dropped_in_time() -> None:
    async with rpc_server() as (address, channel):
        sockets = connect(address, 20, PREFACE[:10])
        try:
            await eventually(lambda: all(map(ended, sockets)), within=HANDSHAKE_SECONDS + 5, what="being dropped")
            await others_are_served(channel)
        finally:
            for one in sockets:
                one.close()


async def test_calls_that_are_begun_and_never_sent_are_bounded_for_each_connection() -> None:
    async with rpc_server() as (address, channel):

        def begin() -> int:
            client = RawHttp2(address)
            limits = [
                int.from_bytes(body[at + 2 : at + 6], "big")
                for kind, _, _, body in client.frames(1.0)
                if kind == SETTINGS
                for at in range(0, len(body), 6)
                if body[at : at + 2] == b"\x00\x03"
            ]
            for stream in range(1, 4001, 2):
                client.send(opened(stream, request_fields(SUBMIT)))
            client.close()
            return limits[0]

        assert await meanwhile(channel, begin) == MAX_STREAMS_PER_CLIENT + 1_000


async def test_streams_that_are_reset_at_once_cost_others_nothing() -> None:
    body = framed(producer_pb2.SubmitTaskRequest(kind="echo").SerializeToString())

    def reset_many(address: str) -> None:
        client = RawHttp2(address)
        for stream in range(1, 40_001, 2):
            call = opened(stream, request_fields(SUBMIT)) + frame(DATA, END_STREAM, stream, body)
            if not client.send(call + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")):
                break
        client.close()

    async with rpc_server() as (address, channel):
        memory = resident()
        await meanwhile(channel, lambda: reset_many(address))
        assert resident() - memory < GROWTH_BYTES


async def test_a_flood_of_pings_ends_its_connection() -> None:
    def ping(address: str) -> bool:
        client = RawHttp2(address)
        flood = (frame(PING, 0, 0, number.to_bytes(8, "big")) for number in range(20_000))
        hung_up = not all(client.send(one) for one in flood)
        told = hung_up or any(kind == GOAWAY for kind, *_ in client.frames(5.0))
        client.close()
        return told

    async with rpc_server() as (address, channel):
        assert await meanwhile(channel, lambda: ping(address))


@pytest.mark.parametrize("flood", ["settings", "continuation", "unknown", "window", "garbage"])
async def test_floods_of_frames_stop_nobody(flood: str) -> None:
    frames = {
        "settings": frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff" * 10),
        "continuation": frame(9, 0, 1, headers_block([("x", "y" * 4000)])),
        "unknown": frame(0xEE, 0xFF, 7, b"x" * 1000),
        "window": frame(8, 0, 0, b"\x7f\xff\xff\xff"),
        "garbage": b"\xff" * 10_000,
    }

    def send(address: str) -> None:
        client = RawHttp2(address)
        if flood == "continuation":
            client.send(frame(HEADERS, 0, 1, headers_block(request_fields(SUBMIT))))
        client.socket.settimeout(2.0)  # who sends settings and reads no answers is not read from any more
        for _ in range(5000):
            if not client.send(frames[flood]):
                break
        client.close()

    async with rpc_server() as (address, channel):
        memory = resident()
        await meanwhile(channel, lambda: send(address))
        assert resident() - memory < GROWTH_BYTES


async def test_answers_that_nobody_reads_are_bounded_and_others_get_theirs() -> None:
    answer = producer_pb2.SubmitTaskResponse(task=task_pb2.Task(result_json=b"x" * (1 << 20)))

    async def large(request: producer_pb2.SubmitTaskRequest) -> producer_pb2.SubmitTaskResponse:
        return answer if request.kind == "large" else producer_pb2.SubmitTaskResponse()

    def ask(address: str) -> RawHttp2:
        client = RawHttp2(address)
        client.send(frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0"))  # no room for anything
        body = framed(producer_pb2.SubmitTaskRequest(kind="large").SerializeToString())
        for stream in range(1, 801, 2):
            client.send(opened(stream, request_fields(SUBMIT)) + frame(DATA, END_STREAM, stream, body))
        list(client.frames(2.0))
        return client

    async with rpc_server(Producer(large)) as (address, channel):
        memory = resident()
        client = await meanwhile(channel, lambda: ask(address))
        assert (
            resident() - memory < 8 * MAX_UNSENT_BYTES
        )  # gRPC takes four bytes for one; 400 of them would be 1,600 MiB
        client.close()
        await eventually(lambda: resident() - memory < 3 * MAX_UNSENT_BYTES, within=10, what="the memory that returns")


@pytest.mark.parametrize("window_bits", [31, 15], ids=["gzip", "deflate"])
async def test_what_inflates_beyond_the_limit_is_refused_and_not_inflated(window_bits: int) -> None:
    # Packed it fits into a stream's first window, so that no update must be waited for.
    bomb = framed(_bomb(60, window_bits), compressed=1)
    encoding = "gzip" if window_bits == 31 else "deflate"

    def send(address: str) -> bytes:
        client = RawHttp2(address)
        client.send(opened(1, request_fields(SUBMIT, grpc_encoding=encoding)))
        for at in range(0, len(bomb), 16_384):
            last = at + 16_384 >= len(bomb)
            client.send(frame(DATA, END_STREAM if last else 0, 1, bomb[at : at + 16_384]))
        found = next((body for kind, _, _, body in client.frames(5.0) if kind == HEADERS), b"")
        client.close()
        return found

    async with rpc_server() as (address, channel):
        memory = peak()
        answer = await meanwhile(channel, lambda: send(address))
        assert b"grpc-status\x018" in answer, answer  # RESOURCE_EXHAUSTED
        assert peak() - memory < 100 * 1024 * 1024


async def test_metadata_beyond_the_limit_is_refused_and_below_it_is_taken() -> None:
    request = producer_pb2.SubmitTaskRequest(kind="echo")
    async with rpc_server() as (_, channel):
        stub: Any = producer_pb2_grpc.ProducerServiceStub(channel)
        await stub.SubmitTask(request, metadata=(("x", "y" * (MAX_METADATA_BYTES - 1_000)),), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SubmitTask(request, metadata=(("x", "y" * (MAX_METADATA_BYTES + 1)),), timeout=5)
        assert refused.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
        await others_are_served(channel)


async def test_the_largest_requests_in_parallel_are_answered_and_forgotten() -> None:
    largest = b"\xff" * (MAX_REQUEST_BYTES - 100)
    async with rpc_server() as (address, channel):
        memory = resident()
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as other:
            call: Any = other.unary_unary(SUBMIT)
            calls = [asyncio.ensure_future(_code(call(largest, timeout=20))) for _ in range(24)]
            while not all(one.done() for one in calls):
                await submit(channel, timeout=10)
                await asyncio.wait(calls, timeout=0.1)
        assert {one.result() for one in calls} == {grpc.StatusCode.INVALID_ARGUMENT}
        del calls
        await eventually(lambda: resident() - memory < GROWTH_BYTES, within=10, what="the memory that returns")


async def test_half_requests_over_http_are_dropped_and_others_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "REQUEST_SECONDS", 1.0)
    async with http_server() as address:
        before = descriptors()
        sockets = []
        for first in (b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab"):
            sockets += await asyncio.to_thread(connect, address, 200, first)
        assert b" 200 " in await livez(address)
        await eventually(lambda: all(map(ended, sockets)), within=15, what="being dropped")
        for one in sockets:
            one.close()
        await eventually(lambda: descriptors() <= before + 5, within=5, what="the descriptors that return")


async def test_who_sends_a_byte_now_and_then_is_dropped_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "REQUEST_SECONDS", 0.5)
    async with http_server() as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.read(15)

        async def drip() -> bool:
            writer.write(b"G")
            return reader.at_eof()

        async def drain() -> None:
            while await reader.read(1000):
                pass

        draining = asyncio.ensure_future(drain())
        await eventually(drip, within=5, what="being dropped")
        writer.close()
        with contextlib.suppress(OSError):
            await draining


async def test_a_full_http_port_makes_room_for_who_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "MAX_CONNECTIONS", 50)
    async with http_server() as address:
        sockets = await asyncio.to_thread(connect, address, 120, b"GET /")
        assert b" 200 " in await livez(address)
        await eventually(lambda: sum(map(ended, sockets)) >= 70, within=5, what="room")
        for one in sockets:
            one.close()


async def test_who_never_reads_an_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(http_bounds, "REQUEST_SECONDS", 1.0)

    def never_read(address: str) -> socket.socket:
        host, _, port = address.rpartition(":")
        one = socket.create_connection((host, int(port)), timeout=5)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(0.2)
        with contextlib.suppress(OSError):
            for _ in range(2000):
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return one

    async with http_server() as address:
        before = descriptors()
        sockets = [await asyncio.to_thread(never_read, address) for _ in range(5)]
        assert b" 200 " in await livez(address)
        # Ours stay open; the server's go.
        await eventually(lambda: descriptors() <= before + len(sockets) + 1, within=15, what="being dropped")
        for one in sockets:
            one.close()


async def _code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _bomb(mebibytes: int, window_bits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    zeros = bytes(1024 * 1024)
    return b"".join([packer.compress(zeros) for _ in range(mebibytes)]) + packer.flush()
