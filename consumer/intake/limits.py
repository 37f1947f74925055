"""How much may start: free slots, and the rate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

from consumer.registry import RegisteredHandler
from headrace_core.settings.queues import QueueSettings

ASYNC_SLOTS = 64
THREAD_SLOTS = 8


def cores() -> int:
    """How many processes can really run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def calls_of(queue: QueueSettings, execution: str) -> int:
    """How many calls of handlers of one execution run at once for a queue."""
    defaults = {"async": ASYNC_SLOTS, "thread": THREAD_SLOTS, "process": cores()}
    return queue.max_concurrency or defaults[execution]


def slots_of(queue: QueueSettings, handlers: Sequence[RegisteredHandler]) -> int:
    """How many units of a queue may be held at once.

    The defaults add up over the executions that its handlers use, for which one a message is for is known only after
    its claim. A batch handler's call holds a whole batch of units.
    """
    if queue.max_concurrency:
        return queue.max_concurrency
    units = {"async": 0, "thread": 0, "process": 0}
    for handler in handlers:
        calls = calls_of(queue, handler.execution)
        wanted = calls
        if handler.batch:
            wanted = max(calls, 2 * queue.max_batch_size)
            if handler.execution == "thread":
                wanted = calls * queue.max_batch_size
        units[handler.execution] = max(units[handler.execution], wanted)
    return max(sum(units.values()), 1)


class Slots:
    """A count of free places. `on_free` is called when one comes back."""

    def __init__(self, limit: int, on_free: Callable[[], None]) -> None:
        self.limit = limit
        self.free = limit
        self.released = 0
        """How many came back so far."""
        self._on_free = on_free

    def take(self, count: int) -> None:
        """Occupy `count` places; the caller has looked at `free`."""
        if count > self.free:
            raise ValueError(f"{count} slots were taken and {self.free} were free")
        self.free -= count

    def release(self) -> None:
        """Give one place back."""
        self.free += 1
        self.released += 1
        self._on_free()


class Turnover:
    """How many slots come back in a tenth of a second, by the last one: what is worth having at hand. Pure."""

    PERIOD_SECONDS = 0.1

    def __init__(self, limit: int) -> None:
        """`limit` is the most that `prefetch` answers."""
        self._limit = limit
        self._began = -math.inf
        self._released = 0
        self._prefetch = 0

    def prefetch(self, now: float, released: int) -> int:
        """How many messages to hold beyond the free slots; `released` counts all slots that ever came back.

        0 for long tasks: what is held here cannot run elsewhere.
        """
        elapsed = now - self._began
        if elapsed >= self.PERIOD_SECONDS:
            share = min(self.PERIOD_SECONDS / elapsed, 1.0)
            self._prefetch = min(self._limit, int((released - self._released) * share))
            self._began, self._released = now, released
        return self._prefetch


class TokenBucket:
    """At most `rate` starts per second on average, with a second's worth at once. Pure: the clock is an argument."""

    def __init__(self, rate: float, now: float) -> None:
        """`rate` per second; 0: no limit. `now` is monotonic, in seconds."""
        self._rate = rate
        self._capacity = max(rate, 1.0)
        self._tokens = min(1.0, self._capacity)
        self._at = now

    def available(self, now: float) -> float:
        """How many may start now; infinity without a limit."""
        if self._rate <= 0:
            return math.inf
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return math.floor(self._tokens + 1e-9)

    def take(self, count: int) -> None:
        """Note `count` starts."""
        if self._rate > 0:
            self._tokens -= count

    def until_next(self) -> float:
        """Seconds until one more may start."""
        return 0.0 if self._rate <= 0 else max(0.0, (1.0 - self._tokens) / self._rate)
