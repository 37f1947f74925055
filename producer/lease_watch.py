"""Whose lease has run out? Judged by what this process itself has seen, on its own monotonic clock (design, rule 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headrace_core.tasks.takeover import Observed

ROUND_SECONDS = 1.0
LATE_SECONDS = 2.0


class LeaseWatch:
    """Keeps since when each lease has been seen unchanged. Pure: the caller reads the leases and the clock."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}
        self._last_round = float("-inf")

    def see(self, leases: Sequence[Observed], now: float, lease_of: Callable[[str], float]) -> list[Observed]:
        """A round's reading at `now` (monotonic seconds); those unchanged for a whole lease of their queue.

        And those of holders that were seen to die: they are lost at once.

        A round that comes late proves nothing about the time before it: the watch starts anew.
        """
        if now - self._last_round > ROUND_SECONDS + LATE_SECONDS:
            self._since.clear()
        self._last_round = now
        self._since = {item.mark: self._since.get(item.mark, now) for item in leases}
        return [item for item in leases if item.dead or now - self._since[item.mark] >= lease_of(item.queue)]

    def fail(self) -> None:
        """A round could not read: whoever could not renew then has an excuse."""
        self._since.clear()
