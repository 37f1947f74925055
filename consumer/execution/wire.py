"""Frames between the consumer and its worker processes: 4 bytes of length, then JSON.

JSON and not pickle: a worker runs what may be untrusted, and unpickling its words would run them in the consumer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

HEADER = struct.Struct(">I")
MAX_FROM_WORKER = 100 * 1024 * 1024
"""Of a plan (16 MiB of JSON, six times that with escapes); results have 1 MiB."""

Frame = dict[str, Any]


class WireError(Exception):
    """What a worker sent is no frame."""


def pack(frame: Frame) -> bytes:
    """A frame as bytes."""
    body = json.dumps(frame).encode()
    return HEADER.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame from a worker; None once it has gone.

    Raises:
        WireError: too long, or not a JSON object.
    """
    try:
        (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
        if size > MAX_FROM_WORKER:
            raise WireError(f"a worker sent {size} bytes; at most {MAX_FROM_WORKER} are allowed")
        body = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return _parsed(body)


def receive(connection: socket.socket) -> Frame | None:
    """The next frame from the consumer, blocking; None once it has gone."""
    header = _exactly(connection, HEADER.size)
    if header is None:
        return None
    body = _exactly(connection, HEADER.unpack(header)[0])
    return None if body is None else _parsed(body)


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    chunks: list[bytes] = []
    while size > 0:
        try:
            chunk = connection.recv(min(size, 1 << 20))
        except OSError:
            return None
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _parsed(body: bytes) -> Frame:
    try:
        frame = json.loads(body)
    except ValueError as error:
        raise WireError("a frame is not JSON") from error
    if not isinstance(frame, dict):
        raise WireError("a frame is not a JSON object")
    return frame
