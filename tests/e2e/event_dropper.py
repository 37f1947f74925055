"""A TCP proxy in front of a nats-server that loses every live event, and nothing else."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
CHUNK = 64 * 1024


class EventDropper:
    """Listens on a port of its own. Messages to `subject…` never reach the client; `dropped` counts them.

    It reads the server's half of the protocol: a line, and for MSG and HMSG a body of the size that the line ends with.
    """

    def __init__(self, port: int, subject: str) -> None:
        self.port = 0
        self.dropped = 0
        self._target = port
        self._subject = subject.encode()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, limit=8 * 1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        upstream_reader, upstream_writer = await asyncio.open_connection(LOOPBACK, self._target, limit=8 * 1024 * 1024)
        pumps = [
            asyncio.create_task(_copy(reader, upstream_writer), name="events-requests"),
            asyncio.create_task(self._filter(upstream_reader, writer), name="events-answers"),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the test is over; asyncio would log a cancelled connection callback as an error
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.transport.abort()
            upstream_writer.transport.abort()

    async def _filter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = line.split()
            has_body = words[:1] in ([b"MSG"], [b"HMSG"])
            frame = line + (await reader.readexactly(int(words[-1]) + 2) if has_body else b"")
            if has_body and words[1].startswith(self._subject):
                self.dropped += 1
                continue
            writer.write(frame)
            await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()
