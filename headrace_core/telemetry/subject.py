"""What the lines of a piece of work are about: said once, where it begins, and in every line that is logged within it.

Found out when a line is written and not before: most units log nothing.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping

from structlog.typing import EventDict, WrappedLogger

Facts = Callable[[], Mapping[str, object]]

_current: contextvars.ContextVar[Facts | None] = contextvars.ContextVar("subject", default=None)


def about(facts: Facts) -> None:
    """From here on in this asyncio task, or thread, and in what it starts: each line has `facts`."""
    _current.set(facts)


def add_subject(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog. What the line says itself stands."""
    facts = _current.get()
    if facts is not None:
        for key, value in facts().items():
            event.setdefault(key, value)
    return event
