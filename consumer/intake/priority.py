"""Which of the waiting messages is claimed next. Pure."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

RESUME = "resume"
WEIGHTS = {"high": 16, "normal": 4, "low": 1}
"""Shares of the starts while every level has something waiting. None starves: low gets 1 of 21."""


class PriorityBuffer(Generic[T]):
    """Messages by level, first in first out within a level.

    `resume` goes before everything (rule 2). The others share by weight, by stride scheduling: each level has a clock
    that its starts move on by 1/weight, and the level that is behind goes next. A level that was empty starts at the
    clock of the others, so that silence earns no credit.
    """

    def __init__(self) -> None:
        self._resume: deque[T] = deque()
        self._levels: dict[str, deque[T]] = {level: deque() for level in WEIGHTS}
        self._clocks = dict.fromkeys(WEIGHTS, 0.0)
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._resume) + sum(len(items) for items in self._levels.values())

    def waiting(self, level: str) -> int:
        """How many wait at `level`."""
        return len(self._resume if level == RESUME else self._levels[level])

    def put(self, level: str, item: T) -> None:
        """Add at the end of `level` (one of resume, high, normal, low)."""
        if level == RESUME:
            self._resume.append(item)
            return
        items = self._levels[level]
        if not items:
            self._clocks[level] = max(self._clocks[level], self._now)
        items.append(item)

    def put_back(self, level: str, item: T) -> None:
        """Return one that was taken to the front of its level; several in the reverse order of their taking."""
        (self._resume if level == RESUME else self._levels[level]).appendleft(item)

    def take(self, count: int) -> list[tuple[str, T]]:
        """Take up to `count`, with their levels."""
        taken: list[tuple[str, T]] = []
        while len(taken) < count:
            level = self._next_level()
            if level is None:
                break
            taken.append((level, self._take_from(level)))
        return taken

    def items(self) -> list[T]:
        """Everything that waits."""
        return [*self._resume, *(item for items in self._levels.values() for item in items)]

    def clear(self) -> list[T]:
        """Take everything."""
        everything = self.items()
        for items in (self._resume, *self._levels.values()):
            items.clear()
        return everything

    def _next_level(self) -> str | None:
        if self._resume:
            return RESUME
        waiting = [level for level, items in self._levels.items() if items]
        # At equal clocks the heavier level: the dictionary's order.
        return min(waiting, key=self._clocks.__getitem__, default=None)

    def _take_from(self, level: str) -> T:
        if level == RESUME:
            return self._resume.popleft()
        self._now = self._clocks[level]
        self._clocks[level] += 1.0 / WEIGHTS[level]
        return self._levels[level].popleft()
