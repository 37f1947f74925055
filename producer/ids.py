"""Ids of tasks: UUIDv7, which sort by the time of their submission, also within one millisecond of one
process.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable
from uuid import UUID

_TAIL_BITS = 74
_PAGE = struct.Struct(">1024I")
_VERSION = 7 << 76
_VARIANT = 2 << 62
_LOW_62 = (1 << 62) - 1


class TaskIds:
    """Gives ids that only grow. `clock` is in nanoseconds since 1970; a step back is bridged by counting
    on.
    """

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._milliseconds = 0
        self._tail = 0
        self._steps: list[int] = []

    def next(self) -> UUID:
        """A new id, greater than every one before."""
        now = self._clock() // 1_000_000
        if now > self._milliseconds:
            # The top bit stays free, so that a millisecond has room for 2^41 steps.
            self._milliseconds, self._tail = now, secrets.randbits(_TAIL_BITS - 1)
        else:
            self._tail += 1 + self._step()
            if self._tail >> _TAIL_BITS:
                self._milliseconds, self._tail = self._milliseconds + 1, secrets.randbits(_TAIL_BITS - 1)
        return self._compose()

    def _step(self) -> int:
        """32 random bits. The system is asked for them a page at a time: each call of it costs a microsecond."""
        if not self._steps:
            self._steps.extend(_PAGE.unpack(secrets.token_bytes(_PAGE.size)))
        return self._steps.pop()

    def _compose(self) -> UUID:
        head = (self._tail >> 62) << 64
        return UUID(int=(self._milliseconds << 80) | _VERSION | head | _VARIANT | (self._tail & _LOW_62))
