"""A client of NATS that sends what it likes: subjects, replies and headers are bytes, as the protocol allows."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

SECONDS = 10.0
CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'


class Published(NamedTuple):
    """What is published: `reply` may be empty, `headers` is the whole block or empty."""

    subject: bytes
    body: bytes
    reply: bytes = b""
    headers: bytes = b""

    def __repr__(self) -> str:
        return (
            f"{self.subject!r} <- {self.body[:200]!r} ({len(self.body)} bytes, {self.reply!r}, {self.headers[:60]!r})"
        )


class RawNats:
    """One blocking connection, made anew when the server has ended it."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "127.0.0.1", address.port or 4222)
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._close()

    def publish(self, message: Published) -> bool:
        """Publish and wait until the server has it; False if it refused to listen."""
        try:
            self._connected().sendall(_command(message) + b"PING\r\n")
            if self._answers():
                return True
        except OSError:
            pass
        self._close()
        return False

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=SECONDS)
            self._socket.recv(65_536)
            self._socket.sendall(CONNECT)
        return self._socket

    def _answers(self) -> bool:
        heard = b""
        while b"PONG\r\n" not in heard:
            piece = self._connected().recv(65_536)
            heard += piece
            if not piece or b"-ERR" in heard:
                return False
        return True

    def _close(self) -> None:
        found, self._socket = self._socket, None
        if found is not None:
            with contextlib.suppress(OSError):
                found.close()


def _command(message: Published) -> bytes:
    subject, body, reply, headers = message
    size = len(headers) + len(body)
    if headers:
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(headers), size, headers, body)
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, size, body)
