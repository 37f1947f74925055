"""Which queues need a consumer, live: one look for all streams, as often as it pays.

A wake is a hint to look now, and worth it only while some stream says that it needs none: work that comes to an end is
told of by the next look of the clock, which is early enough for whoever would take consumers away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from headrace_core.errors import DatabaseUnavailable, ServerLimit
from headrace_core.tasks.figures import SHARE
from headrace_core.telemetry import logs
from status.limits import ScalingLimits, WakeLike
from status.trigger import Trigger, refuse

BUSY_AGAIN = 5.0
A_YEAR = 365 * 86400.0

log = logs.get(__name__)


class Observer:
    """One stream. Keeps only what is so now: whoever reads slowly misses what was in between."""

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger
        self.active: bool | None = None
        self._declared: Mapping[str, bool] = {}
        self._ended = False
        self._changed = asyncio.Event()

    def see(self, found: Mapping[str, bool]) -> None:
        """What a look has found that began after this stream did."""
        self._declared = found
        active = self.trigger.active(found)
        if active != self.active:
            self.active = active
            self._changed.set()

    def end(self) -> None:
        """The service stops, or the stream is old enough."""
        self._ended = True
        self._changed.set()

    async def changes(self) -> AsyncIterator[bool]:
        """How it is, then every change, until the end. Raises InvalidFields for a queue that is not there."""
        sent: bool | None = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._ended:
                return
            refuse(self.trigger.unknown(self._declared))
            if self.active is not None and self.active != sent:
                sent = self.active
                yield sent


class Activity:
    """The streams, and the loop that looks for them. One for the process; `run` must be running."""

    def __init__(self, look: Callable[[], Awaitable[Mapping[str, bool]]], limits: ScalingLimits) -> None:
        self._look = look
        self._limits = limits
        self._observers: dict[Observer, None] = {}
        self._some = asyncio.Event()
        self._now = asyncio.Event()
        self._idle = True
        self._answered = True
        self._cost = 0.0
        self._draining = False

    @contextmanager
    def observe(self, trigger: Trigger) -> Iterator[Observer]:
        """A stream for as long as it is open. Raises ServerLimit."""
        if len(self._observers) >= self._limits.max_streams:
            raise ServerLimit(
                f"this server has {self._limits.max_streams:,} streams of a scaler open, its limit; try another one",
                retry_after=BUSY_AGAIN,
                metadata={"limit": str(self._limits.max_streams)},
            )
        observer = Observer(trigger)
        if self._draining:
            observer.end()
        self._observers[observer] = None
        self._some.set()
        self._now.set()
        life = asyncio.get_running_loop().call_later(min(self._limits.stream, A_YEAR), observer.end)
        try:
            yield observer
        finally:
            life.cancel()
            del self._observers[observer]
            if not self._observers:
                self._some.clear()

    def wake(self, _hints: Sequence[WakeLike]) -> None:
        """Some task has events."""
        if self._observers and self._idle:
            self._now.set()

    def drain(self) -> None:
        """End every stream, now and from now on. Idempotent.

        With OK, not with an error: KEDA opens a stream that has ended well again after 2 s, and one that has failed
        later each time.
        """
        self._draining = True
        for observer in self._observers:
            observer.end()

    async def run(self) -> None:
        """Look until cancelled, while there is a stream to look for."""
        while True:
            await self._some.wait()
            self._now.clear()
            await self._look_once()
            await asyncio.sleep(self._gap())
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.look):
                    await self._now.wait()

    async def _look_once(self) -> None:
        observers = list(self._observers)
        began = asyncio.get_running_loop().time()
        try:
            found = await self._look()
        except DatabaseUnavailable as error:
            self._note(answered=False, why=error.message)
            return
        self._cost = asyncio.get_running_loop().time() - began
        self._note(answered=True)
        for observer in observers:
            observer.see(found)
        self._idle = not all(observer.active for observer in observers)

    def _gap(self) -> float:
        """Between two looks at least, whatever wakes there are: they take a twentieth of a connection at most."""
        return min(max(self._limits.gap, SHARE * self._cost), self._limits.look)

    def _note(self, *, answered: bool, why: str = "") -> None:
        if answered != self._answered:
            self._answered = answered
            said = "streams of the scaler are live again" if answered else "streams of the scaler stand still"
            log.info(said, action="scaler.live" if answered else "scaler.blind", error=why)
