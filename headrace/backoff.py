"""How long to wait before the next try: doubling, jittered, and never sooner than the server asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits in seconds: the n-th is drawn from the upper half of min(maximum, initial * 2**n)."""

    initial: float = 0.1
    maximum: float = 5.0

    def delay(self, attempt: int, *, retry_after: float | None = None, draw: float | None = None) -> float:
        """Return the wait after failed attempt number `attempt` (from 0).

        `retry_after` is the server's lower bound. `draw` in [0, 1) replaces the random number.
        """
        # Attempts are few; the bound keeps 2**n from growing without end.
        ceiling = min(self.maximum, self.initial * 2 ** min(attempt, 30))
        # Jitter against herds, not secrecy.
        chance = random.random() if draw is None else draw  # noqa: S311
        pause: float = ceiling * (0.5 + chance / 2)
        return max(pause, (retry_after or 0.0) * (1 + chance / 10))
