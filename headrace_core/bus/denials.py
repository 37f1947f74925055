"""What NATS does not let us do. It says so once, beside everything else, and whoever asked would wait for an answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager

from headrace_core.bus.errors import Denied

# A publication that is still denied is tried again, and denied again, well within this.
REMEMBERED_SECONDS = 60.0
SHOWN = 3
_SAID = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)


class Denials:
    """The denials on one connection. Capitals do not count: nats-py tells the server's word in small letters."""

    def __init__(self) -> None:
        self._publications: dict[str, float] = {}
        self._subscriptions: dict[str, None] = {}
        self._asked: dict[str, list[asyncio.Timeout]] = {}

    def clear(self) -> None:
        """A new connection may be allowed more."""
        self._publications.clear()
        self._subscriptions.clear()

    def note(self, said: str) -> bool:
        """Take the server's word; True if it is a denial that was not known. Requests that wait for it end at once."""
        found = _SAID.search(said)
        if found is None:
            return False
        subject = found[2].lower()
        is_new = not self._knows(subject)
        if found[1].lower() == "subscription":
            self._subscriptions[subject] = None
        else:
            self._publications[subject] = _now()
        for limit in self._asked.get(subject, ()):
            if not limit.expired():
                limit.reschedule(_now())
        return is_new

    def sentence(self) -> str:
        """What is denied at present; empty: nothing."""
        fresh = [subject for subject, at in self._publications.items() if _now() - at < REMEMBERED_SECONDS]
        told = [f"publish on {subject}" for subject in fresh] + [f"subscribe to {item}" for item in self._subscriptions]
        if not told:
            return ""
        more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        return (
            f"NATS does not let this user {', '.join(told[:SHOWN])}{more}: "
            "give it the permissions that headrace topology permissions prints"
        )

    @contextmanager
    def ending(self, subject: str, limit: asyncio.Timeout) -> Iterator[None]:
        """Let a denial of `subject` end `limit` at once, while inside."""
        key = subject.lower()
        limits = self._asked.setdefault(key, [])
        limits.append(limit)
        try:
            yield
        finally:
            limits.remove(limit)
            if not limits:
                self._asked.pop(key, None)

    def of(self, subject: str, since: float) -> Denied | None:
        """The error for a request on `subject` that was denied at `since` or later, by the loop's clock."""
        if self._publications.get(subject.lower(), 0.0) < since:
            return None
        return Denied(
            f"NATS does not let this user publish on {subject}: give it the permissions that headrace topology "
            "permissions prints"
        )

    def _knows(self, subject: str) -> bool:
        return subject in self._publications or subject in self._subscriptions


def _now() -> float:
    return asyncio.get_running_loop().time()
