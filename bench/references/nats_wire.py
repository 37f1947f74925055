"""The least of a NATS client that the bare loop needs: commands in one piece, messages straight to a callback."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

REQUEST_SECONDS = 5.0
END = b"\r\n"

OnMessage = Callable[[bytes, bytes, bytes], None]
"""Called with subject, reply subject and body. Headers are left out: only statuses have any, and no body."""


class Wire(asyncio.Protocol):
    """One connection. It is a benchmark's: a lost connection ends the run."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._rest = b""
        self._callbacks: dict[bytes, OnMessage] = {}
        self._greeted: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.server: dict[str, Any] = {}
        """What the server says of itself."""

    @classmethod
    async def connect(cls, url: str) -> Wire:
        """Connect to `nats://host:port`."""
        where = urlsplit(url)
        assert where.hostname is not None
        assert where.port is not None
        _, wire = await asyncio.get_running_loop().create_connection(cls, where.hostname, where.port)
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "bench"}
        async with asyncio.timeout(REQUEST_SECONDS):
            wire.server = await wire._greeted
        wire.write(b"CONNECT " + json.dumps(options).encode() + END)
        return wire

    def close(self) -> None:
        """Close."""
        self._transport.close()

    def write(self, commands: bytes) -> None:
        """Send commands."""
        self._transport.write(commands)

    def subscribe(self, subject: str, callback: OnMessage) -> None:
        """Call `callback` for every message on `subject`."""
        number = b"%d" % (len(self._callbacks) + 1)
        self._callbacks[number] = callback
        self.write(b"SUB %b %b\r\n" % (subject.encode(), number))

    async def request(self, subject: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the JetStream API. Raises RuntimeError for a refusal."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        inbox = new_inbox()
        self.subscribe(inbox, lambda _subject, _reply, data: answer.set_result(data))
        data = json.dumps(body).encode()
        self.write(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), inbox.encode(), len(data), data))
        async with asyncio.timeout(REQUEST_SECONDS):
            found: dict[str, Any] = json.loads(await answer)
        if "error" in found:
            raise RuntimeError(f"{subject}: {found['error']}")
        return found

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        data = self._rest + data if self._rest else data
        at = 0
        while (end := data.find(END, at)) >= 0:
            after = self._line(data, at, end)
            if after < 0:
                break
            at = after
        self._rest = data[at:]

    def _line(self, data: bytes, at: int, end: int) -> int:
        """Handle the line data[at:end]; return where the next begins, -1: its body is not all there yet."""
        words = data[at:end].split(b" ")
        if words[0] not in (b"MSG", b"HMSG"):
            self._control(words[0], data[at:end])
            return end + 2
        size = int(words[-1])
        after = end + 2 + size + 2
        if len(data) < after:
            return -1
        head = int(words[-2]) if words[0] == b"HMSG" else 0
        reply = words[3] if len(words) == (6 if head else 5) else b""
        self._callbacks[words[2]](words[1], reply, data[end + 2 + head : after - 2])
        return after

    def _control(self, word: bytes, line: bytes) -> None:
        if word == b"PING":
            self.write(b"PONG\r\n")
        elif word == b"INFO" and not self._greeted.done():
            self._greeted.set_result(json.loads(line[5:]))
        elif word == b"-ERR":
            raise RuntimeError(f"NATS says {line!r}")


def new_inbox() -> str:
    """A subject that nobody else has."""
    return f"_INBOX.{secrets.token_hex(8)}"
