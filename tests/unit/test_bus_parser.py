"""The parser before the library's: however a connection cuts what it brings, every message arrives once and whole."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace_core.bus.wire import DirectClient, Incoming

DIRECT, OTHER = 7, 8
BODIES = st.binary(max_size=40)
WORDS = st.sampled_from(["a", "a.b", "_INBOX.x.1"])
HEAD = b"NATS/1.0\r\nA: b\r\n\r\n"


class Listener(DirectClient):
    """Notes what comes, without a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []
        self.direct[DIRECT] = self.note

    def note(self, message: Incoming) -> None:
        self.seen.append((message.subject, message.reply, message.data, dict(message.headers)))

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        if sid == DIRECT:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            self.seen.append((sid, bytes(data)))

    async def _process_ping(self) -> None:
        self.seen.append(("PING",))


@st.composite
def commands(draw: st.DrawFn) -> tuple[bytes, tuple[Any, ...]]:
    """A command of the server, and what the listener is to note of it."""
    kind = draw(st.sampled_from(["direct", "direct", "direct", "headers", "other", "ping"]))
    if kind == "ping":
        return b"PING\r\n", ("PING",)
    subject, reply, body = draw(WORDS), draw(st.none() | WORDS), draw(BODIES)
    asked = f"{subject} {OTHER if kind == 'other' else DIRECT} " + (f"{reply} " if reply else "")
    if kind == "headers":
        sizes = f"{len(HEAD)} {len(HEAD) + len(body)}"
        return f"HMSG {asked}{sizes}\r\n".encode() + HEAD + body + b"\r\n", (subject, reply or "", body, {"A": "b"})
    noted: tuple[Any, ...] = (OTHER, body) if kind == "other" else (subject, reply or "", body, {})
    return f"MSG {asked}{len(body)}\r\n".encode() + body + b"\r\n", noted


@given(st.lists(commands(), max_size=12), st.data())
def test_every_message_arrives_once_and_whole_however_it_is_cut(
    sent: list[tuple[bytes, tuple[Any, ...]]], data: st.DataObject
) -> None:
    wire = b"".join(command for command, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True)]

    async def deliver() -> list[tuple[Any, ...]]:
        listener = Listener()
        for piece in pieces:
            await listener._ps.parse(piece)
        return listener.seen

    assert asyncio.run(deliver()) == [noted for _, noted in sent]
