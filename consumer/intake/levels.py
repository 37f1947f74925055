"""Pulling the four levels of one queue: how much is asked for, what is held, what is given back.

A request that the server has accepted cannot be taken back, and four levels times the free slots would take more from
the queue than can start here, while another consumer idles. So each level begins with a few messages at a time and
doubles while they keep coming; and what has waited for a second without a free slot goes back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from consumer.intake.priority import PriorityBuffer
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import LEVELS, StreamNames, durable_name
from headrace_core.bus.puller import Message, Puller, in_progress
from headrace_core.tasks.message import Malformed, parse
from headrace_core.tasks.model import Delivered

FIRST_WINDOW = 4
RETURN_AFTER_SECONDS = 1.0
RETURN_DELAY_SECONDS = 0.1
DRAIN_DELAY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Waiting:
    """A delivery that waits for its claim."""

    delivered: Delivered
    message: Message
    at: float


class _Level:
    """One puller and how much it asks for."""

    def __init__(self, puller: Puller, largest: int) -> None:
        self.puller = puller
        self._largest = largest
        self._window = min(FIRST_WINDOW, largest)
        self._received = 0

    def wanted(self, held: int, free: int) -> int:
        """How many more to ask for, in requests that are worth their cost; 0 for none."""
        window = min(self._window, free)
        missing = window - held - self.puller.outstanding
        return missing if missing > 0 and (self.puller.outstanding <= window // 2) else 0

    def received(self) -> None:
        """A message has come. After a window's worth of them the window doubles."""
        self._received += 1
        if self._received >= self._window:
            self._received = 0
            self._window = min(self._window * 2, self._largest)

    def shrink(self) -> None:
        """Something was asked for in vain."""
        self._received = 0
        self._window = max(self._window // 2, min(FIRST_WINDOW, self._largest))


class Levels:
    """The pullers of one queue and the messages that wait for their claim."""

    def __init__(
        self,
        bus: Bus,
        names: StreamNames,
        queue: str,
        largest: int,
        now: Callable[[], float],
        on_message: Callable[[], None],
        on_malformed: Callable[[Message, str], None],
    ) -> None:
        """`largest` is the most that is held of a level. `on_message` is called when there is something to do."""
        self.buffer: PriorityBuffer[Waiting] = PriorityBuffer()
        self._now = now
        self._on_message = on_message
        self._on_malformed = on_malformed
        self._probes: list[Message] = []
        self.received_at = now()
        """When the last message came, by the clock `now`; before the first: the time of the start."""
        self._levels = {
            level: _Level(
                Puller(
                    bus,
                    names.tasks,
                    durable_name(queue, level),
                    functools.partial(self._receive, level),
                    on_idle=functools.partial(self._idle, level),
                ),
                largest,
            )
            for level in LEVELS
        }

    @property
    def silence(self) -> float:
        """For how many seconds a level that was asked has said nothing at all; 0 where none owes us a word."""
        return max(level.puller.silence for level in self._levels.values())

    async def start(self) -> None:
        """Listen; `top_up` asks."""
        for level in self._levels.values():
            await level.puller.start()

    async def top_up(self, free: int) -> None:
        """Ask for more, given that so many units may start, now or in a moment."""
        for name, level in self._levels.items():
            wanted = level.wanted(self.buffer.waiting(name), free)
            if wanted:
                await level.puller.request(wanted)
        while self._probes:
            await self._probes.pop().ack()

    async def in_progress(self) -> None:
        """Put the redelivery of everything off that waits here."""
        await in_progress([item.message for item in self.buffer.items()])

    async def give_back_stale(self) -> int:
        """Return what has waited in vain; called while nothing can start. How many.

        Not at its second delivery: after three the broker would keep it for itself.
        """
        since = self._now() - RETURN_AFTER_SECONDS
        taken = self.buffer.take(len(self.buffer))
        stale = [item for _, item in taken if item.at < since and item.message.deliveries < 2]
        leaving = set(map(id, stale))
        for level, item in reversed(taken):
            if id(item) not in leaving:
                self.buffer.put_back(level, item)
        for item in stale:
            await item.message.nak(RETURN_DELAY_SECONDS)
        return len(stale)

    async def stop(self) -> None:
        """Ask for nothing more and return everything that is not claimed. Idempotent."""
        for level in self._levels.values():
            await level.puller.stop()
        for item in self.buffer.clear():
            await item.message.nak(DRAIN_DELAY_SECONDS)

    def _receive(self, name: str, message: Message) -> None:
        level = self._levels[name]
        self.received_at = self._now()
        try:
            delivered = parse(message.body)
        except Malformed as error:
            self._on_malformed(message, str(error))
            return
        if delivered is None:
            self._probes.append(message)
        else:
            self.buffer.put(name, Waiting(delivered, message, self._now()))
        level.received()
        self._on_message()

    def _idle(self, name: str) -> None:
        self._levels[name].shrink()
        self._on_message()
