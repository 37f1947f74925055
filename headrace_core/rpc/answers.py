"""Large answers that their clients do not read: gRPC keeps each in memory for as long as the connection lives.

A method is over when it has its answer; sending it is not. Whoever asks for a thousand results and reads none would
hold a thousand of them here, four times over. So their bytes are counted until the call is done, and a connection with
too many of them is refused.
"""

from __future__ import annotations

import contextvars
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc

from headrace_core.errors import ServerLimit

LARGE_BYTES = 64 * 1024
"""What is smaller is not counted: the number of calls bounds it."""
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Of one connection: twice the largest answer."""
MAX_UNSENT_BYTES_IN_ALL = 256 * 1024 * 1024

Context = grpc.aio.ServicerContext[Any, Any]
Serializer = Callable[[Any], bytes]

_current: contextvars.ContextVar[Context] = contextvars.ContextVar("call")


class Unsent:
    """The large answers of one server that are on their way. Belongs to one event loop."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self._total = 0

    @property
    def total(self) -> int:
        """Bytes that no client has taken yet."""
        return self._total

    def admit(self, context: Context) -> None:
        """A call begins. Raises ServerLimit if its connection, or all of them, leave too much unread."""
        _current.set(context)
        if not self._total:
            return
        if self._of[context.peer()] >= MAX_UNSENT_BYTES or self._total >= MAX_UNSENT_BYTES_IN_ALL:
            raise ServerLimit(
                f"answers wait to be read, {MAX_UNSENT_BYTES} bytes on one connection or {MAX_UNSENT_BYTES_IN_ALL} in"
                " all, which is the limit; read the answers, or ask for less at once",
                metadata={"limit": str(MAX_UNSENT_BYTES)},
            )

    def counting(self, serialize: Serializer | None) -> Serializer:
        """`serialize`, which notes what is large. gRPC calls it for the call that was admitted last in its task."""
        assert serialize is not None, "generated handlers bring their serializer"

        def write(message: Any) -> bytes:
            data = serialize(message)
            if len(data) >= LARGE_BYTES:
                self._note(_current.get(), len(data))
            return data

        return write

    def _note(self, context: Context, size: int) -> None:
        peer = context.peer()
        self._of[peer] += size
        self._total += size
        done: Any = functools.partial(self._done, peer, size)
        context.add_done_callback(done)

    def _done(self, peer: str, size: int, _context: object) -> None:
        self._total -= size
        self._of[peer] -= size
        if not self._of[peer]:
            del self._of[peer]
