"""The least of HTTP/2 that a hostile client needs: frames as bytes, over a blocking socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
SECONDS = 10.0


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """A frame; of any length, also one that no peer allows."""
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def headers_block(fields: Iterable[tuple[str, str]]) -> bytes:
    """Literals without indexing: the plainest HPACK."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def request_fields(path: str, **more: str) -> list[tuple[str, str]]:
    """The fields of a call of gRPC; `more` with underscores for dashes."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    fields += [("content-type", more.pop("content_type", "application/grpc")), ("te", "trailers")]
    return fields + [(name.replace("_", "-"), value) for name, value in more.items()]


def opened(stream: int, fields: Iterable[tuple[str, str]], *, end: bool = False) -> bytes:
    """A HEADERS frame that begins a stream."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, headers_block(fields))


def _text(text: str) -> bytes:
    raw = text.encode("latin-1")
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, prefix = len(raw) - 127, bytearray([127])
    while rest > 127:
        prefix.append(rest & 127 | 128)
        rest >>= 7
    prefix.append(rest)
    return bytes(prefix) + raw


class RawHttp2:
    """A connection whose settings are exchanged."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=SECONDS)
        self._buffer = b""
        self.send(PREFACE + frame(SETTINGS, 0, 0))

    def send(self, data: bytes) -> bool:
        """Send; False once the server has hung up."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def frames(self, seconds: float) -> Iterator[tuple[int, int, int, bytes]]:
        """What comes within so many seconds: kind, flags, stream, body. Ends when the server hangs up."""
        until = time.monotonic() + seconds
        while True:
            while len(self._buffer) >= 9:
                size = int.from_bytes(self._buffer[:3], "big")
                if len(self._buffer) < 9 + size:
                    break
                kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
                body, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
                yield kind, flags, stream & 0x7FFFFFFF, body
            left = until - time.monotonic()
            if left <= 0:
                return
            self.socket.settimeout(left)
            try:
                piece = self.socket.recv(65_536)
            except (TimeoutError, OSError):
                return
            if not piece:
                return
            self._buffer += piece

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.socket.close()
