"""What follows a commit: new messages, live hints, dead letters.

None of it is waited for by the units, and none of it is needed for correctness: the relay publishes again whatever
still waits after a moment, and watchers read again. So the buffers are bounded and may overflow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from consumer.broker import BrokerSide
from headrace_core.tasks.model import Publication, Settlements, Wake
from headrace_core.telemetry import metrics

MAX_WAITING = 20_000
BATCH = 1000
T = TypeVar("T")


class Announcer:
    """Publishes, in the background and in batches, what committed transactions left to say."""

    def __init__(self, broker: BrokerSide | None) -> None:
        """`broker` is None with `broker = "none"`: then there is nobody to tell."""
        self._broker = broker
        self._publications: deque[Publication] = deque(maxlen=MAX_WAITING)
        self._wakes: deque[Wake] = deque(maxlen=MAX_WAITING)
        self._letters: deque[str] = deque(maxlen=MAX_WAITING)
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def settled(self, settlements: Settlements) -> None:
        """Announce what a settled batch left. Does not block."""
        self._publications.extend(settlements.publications)
        self._letters.extend(answer.dead_letter_id for answer in settlements.answers if answer.dead_letter_id)
        self.wakes(settlements.wakes)

    def wakes(self, wakes: Sequence[Wake]) -> None:
        """Announce that tasks have new events. Does not block."""
        metrics.wakes_dropped_total.inc(max(len(self._wakes) + len(wakes) - MAX_WAITING, 0))
        self._wakes.extend(wakes)
        self._arrived.set()
        self._idle.clear()

    async def flush(self, within: float) -> bool:
        """Wait until everything is announced, at most `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Announce what arrives. A background task."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._wakes or self._publications or self._letters:
                await self._announce()
            if not self._arrived.is_set():
                self._idle.set()

    async def _announce(self) -> None:
        wakes, publications, letters = _some(self._wakes), _some(self._publications), _some(self._letters)
        broker = self._broker
        if broker is None or not broker.bus.connected:
            metrics.wakes_dropped_total.inc(len(wakes))
            return
        if wakes:
            await broker.wake(wakes)
        if publications:
            await broker.publish(publications)
        if letters:
            await broker.dead_letters.publish(letters)


def _some(waiting: deque[T]) -> list[T]:
    return [waiting.popleft() for _ in range(min(len(waiting), BATCH))]
