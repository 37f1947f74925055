"""Measurements that may hang: bounded for whoever asks, one at a time, and shared while they are fresh.

An answer about a database that hangs must not itself hang on it, not even on the clean-up of the question. So the
question stays with its task, and the caller leaves when its time is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Unanswered(Exception):
    """The part did not answer in time. The text is a sentence for people."""


class Probe(Generic[T]):
    """One measurement, named for people ("Postgres"). `measure` must end some time; `fresh` in seconds."""

    def __init__(self, name: str, measure: Callable[[], Awaitable[T]], *, fresh: float = 1.0) -> None:
        self._name = name
        self._measure = measure
        self._fresh = fresh
        self._task: asyncio.Task[T] | None = None
        self._last: tuple[float, T] | None = None

    async def read(self, within: float) -> T:
        """A value at most `fresh` seconds old.

        Raises:
            Unanswered: not within `within` seconds.
            Whatever the measurement raises.
        """
        if self._last is not None and asyncio.get_running_loop().time() - self._last[0] < self._fresh:
            return self._last[1]
        task = self._task
        if task is None or task.done():
            task = self._task = asyncio.create_task(self._run(), name=f"probe {self._name}")
        await asyncio.wait({task}, timeout=within)
        if not task.done():
            raise Unanswered(f"{self._name} did not answer within {within:g} s")
        return task.result()

    async def close(self) -> None:
        """Give up what is under way; 1 s at most. Idempotent."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)

    async def _run(self) -> T:
        value = await self._measure()
        self._last = (asyncio.get_running_loop().time(), value)
        return value
