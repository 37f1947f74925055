"""The wire between the consumers and the nats-server of a test: it can lose acknowledgements, and nothing else."""

import asyncio
import contextlib
from collections.abc import Callable

from headrace_core.stack.ports import LOOPBACK

CHUNK = 64 * 1024
LINE_LIMIT = 1024 * 1024
ACKNOWLEDGES = b"$JS.ACK."
# An empty body is an acknowledgement as well. What only asks for more time (+WPI) passes.
LOST = (b"+ACK", b"+TERM", b"\r\n")


class AckWire:
    """Listens on a port of its own and forwards to the server at `port()`; `losing` acknowledgements on demand.

    It reads the client's half of the protocol: lines, and for PUB and HPUB a body of the size that the line ends with.
    """

    def __init__(self, port: Callable[[], int]) -> None:
        self.losing = False
        self.lost = 0
        """Acknowledgements that never arrived."""
        self._target = port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """URL for clients; valid once started."""
        assert self._server is not None, "url before start()"
        return f"nats://{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, LOOPBACK, 0, limit=LINE_LIMIT)

    async def stop(self) -> None:
        """Break every connection and listen no more."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._forward(reader, writer)
        except asyncio.CancelledError:
            pass  # stop() broke it; asyncio would log a cancelled connection callback as an error
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(LOOPBACK, self._target())
        except OSError:
            return  # the server is down: the client sees its connection end
        pumps = [
            asyncio.create_task(self._requests(reader, upstream_writer), name="ack-wire-requests"),
            asyncio.create_task(_copy(upstream_reader, writer), name="ack-wire-replies"),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            upstream_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # an end: the other side ends too
            while line := await reader.readline():
                body = b""
                if line.startswith((b"PUB ", b"HPUB ")):
                    body = await reader.readexactly(int(line.split()[-1]) + 2)
                if self.losing and _acknowledges(line, body):
                    self.lost += 1
                    continue
                writer.write(line + body)
                await writer.drain()


def _acknowledges(line: bytes, body: bytes) -> bool:
    words = line.split()
    return len(words) > 1 and words[1].startswith(ACKNOWLEDGES) and body.startswith(LOST)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
