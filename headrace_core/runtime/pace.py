"""Batches that adapt to the load: what is alone goes at once, a crowd is waited for.

A statement for four rows costs about what one for forty does. A loop that takes whatever has come since its last
statement makes many small ones under a steady load, and spends itself on them. So while items come by the dozen it
begins one batch every few milliseconds and no more; where they come one by one, each goes at once.
"""

from __future__ import annotations

import asyncio

SECONDS = 0.008
CROWD = 6
WINDOW_SECONDS = 0.01


class Pace:
    """The pace of one loop: `await gather()` before taking a batch, `took(size)` when it is taken."""

    def __init__(self, seconds: float = SECONDS, crowd: int = CROWD) -> None:
        """At most one batch in `seconds` while `crowd` items or more come within a hundredth of a second."""
        self._seconds = seconds
        self._crowd = crowd
        self._next = 0.0
        self._window = 0.0
        self._items = 0

    async def gather(self) -> None:
        """Wait for company, if company is to be expected."""
        if (pause := self._next - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(pause)

    def took(self, size: int) -> None:
        """A batch of so many begins."""
        now = asyncio.get_running_loop().time()
        if now - self._window > WINDOW_SECONDS:
            self._window, self._items = now, 0
        self._items += size
        self._next = now + self._seconds if self._items >= self._crowd else 0.0
