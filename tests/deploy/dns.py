"""The cluster's DNS for the tests: names of Services to the addresses of their ready pods, over UDP.

Only what gRPC's resolver asks: A records. Anything else exists not, or has no addresses. See RFC 1035, section 4.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence

HEADER = struct.Struct(">6H")
QUESTION_END = struct.Struct(">2H")
ANSWER = struct.Struct(">2HIH4s")
ANSWERED, NO_SUCH_NAME = 0x8580, 0x8583
A, INTERNET = 1, 1
POINTER_TO_QUESTION = 0xC00C
SECONDS_TO_LIVE = 0

Resolve = Callable[[str], Sequence[str] | None]


class DnsServer(asyncio.DatagramProtocol):
    """Answers with what `resolve` returns for a name: IPv4 addresses, or None for a name that does not exist."""

    def __init__(self, resolve: Resolve) -> None:
        self.asked: list[str] = []
        self.address = ""
        self._resolve = resolve
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, host: str) -> None:
        """Listen on a free port of `host`; `address` is then host:port."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, 0))
        self._transport = transport
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def stop(self) -> None:
        """Answer no longer."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """One question, one answer."""
        assert self._transport is not None
        self._transport.sendto(self.answer(data), addr)

    def answer(self, query: bytes) -> bytes:
        """The message that answers `query`."""
        number, *_ = HEADER.unpack_from(query)
        name, kind, end = _question(query)
        question = query[HEADER.size : end]
        found = self._resolve(name)
        self.asked.append(name)
        if found is None:
            return HEADER.pack(number, NO_SUCH_NAME, 1, 0, 0, 0) + question
        records = [_record(address) for address in found] if kind == A else []
        return HEADER.pack(number, ANSWERED, 1, len(records), 0, 0) + question + b"".join(records)


def _question(query: bytes) -> tuple[str, int, int]:
    """The name, the type, and where the question ends."""
    labels, at = [], HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    kind, _ = QUESTION_END.unpack_from(query, at + 1)
    return ".".join(labels), kind, at + 1 + QUESTION_END.size


def _record(address: str) -> bytes:
    data = socket.inet_aton(address)
    return struct.pack(">H", POINTER_TO_QUESTION) + ANSWER.pack(A, INTERNET, SECONDS_TO_LIVE, len(data), data)
