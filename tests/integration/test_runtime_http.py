"""The embedded HTTP server: bound before it answers, stopped within its limit, and never gone without a word."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from headrace_core.runtime.http import HttpServer
from headrace_core.runtime.ops import ops_app
from headrace_core.settings.errors import SettingsError


async def get(address: str, path: str) -> str:
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_it_answers_once_start_returns_and_not_after_stop() -> None:
    server = HttpServer(ops_app(list), "127.0.0.1:0")
    await server.stop()  # legal before start
    address = await server.start()
    assert (await get(address, "/livez")).startswith("HTTP/1.1 200")
    await server.stop()
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await get(address, "/livez")


async def test_an_address_that_is_taken_is_named() -> None:
    server = HttpServer(ops_app(list), "127.0.0.1:0")
    address = await server.start()
    with pytest.raises(SettingsError, match=f"cannot listen on {address}: Address already in use"):
        await HttpServer(ops_app(list), address).start()
    await server.stop()


async def test_a_request_that_hangs_does_not_hold_the_stop_up() -> None:
    entered = asyncio.Event()

    async def hang(_request: Request) -> Response:
        entered.set()
        await asyncio.Event().wait()
        return PlainTextResponse("never")

    server = HttpServer(Starlette(routes=[Route("/", hang)]), "127.0.0.1:0")
    address = await server.start()
    request = asyncio.create_task(get(address, "/"))
    await entered.wait()
    async with asyncio.timeout(6):
        await server.stop()
    # The connection is cut, with or without an answer: what matters is that the stop was bounded.
    await asyncio.wait({request}, timeout=5)
    assert request.done()
    request.exception()


async def test_an_end_that_nobody_asked_for_is_told() -> None:
    server = HttpServer(ops_app(list), "127.0.0.1:0")
    await server.start()
    closed = asyncio.create_task(server.serve_until_closed())
    await server.stop()
    async with asyncio.timeout(5):
        await server.serve_until_closed()
        await closed  # asked for: no error
    other = HttpServer(ops_app(list), "127.0.0.1:0")
    await other.start()
    [serving] = [task for task in asyncio.all_tasks() if task.get_name() == "http server"]
    serving.cancel()
    with pytest.raises(RuntimeError, match="the http server has ended by itself"):
        await other.serve_until_closed()
    await other.stop()
