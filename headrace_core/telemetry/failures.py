"""Exceptions in logs: what they are and where they came from, never what they say.

The text of an exception may hold anything that was in the program's hands: a payload (a KeyError, a validation), a
result, a token. So a line has the types and the places of the whole chain. A text is shown where it cannot hold a
client's data: what the operating system says, and what Postgres says of anything but data.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from structlog.typing import EventDict, WrappedLogger

from headrace_core.settings.errors import SettingsError

MAX_CHAIN = 5
MAX_FRAMES = 30
MAX_TEXT = 300
OF_DATA = ("22", "23", "54")
"""SQLSTATE classes whose messages quote the data of the statement."""


def describe(error: BaseException) -> str:
    """An exception and those it came from, each with its places; the first cause comes first, as Python has it."""
    return "\n".join(_lines(error))


def said(error: BaseException) -> str:
    """The exception's type, and its text where that cannot hold a client's data."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = _safe_text(error)
    return f"{name}: {text[:MAX_TEXT]}" if text else name


def render_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog: `exc_info` becomes the text `exception`."""
    error = _exception_of(event.pop("exc_info", None))
    if error is not None:
        event["exception"] = describe(error)
    return event


def cut_asyncio(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor of structlog: asyncio's own lines show tasks, with what they raised; their first line says it all."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def log_uncaught(log: Any) -> None:
    """What nobody catches goes to `log` as well, in this process, instead of as plain text to standard error."""

    def of_program(kind: type[BaseException], error: BaseException, _at: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        log.critical("the program ends for a defect", action="service.crashed", exc_info=error)

    def of_thread(found: threading.ExceptHookArgs) -> None:
        name = found.thread.name if found.thread else ""
        log.error("a thread has ended for a defect", action="thread.crashed", thread=name, exc_info=found.exc_value)

    def of_nobody(found: Any) -> None:
        log.error("an error that nobody can catch", action="defect.unraisable", exc_info=found.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = of_program, of_thread, of_nobody


def _lines(error: BaseException) -> Iterator[str]:
    for index, one in enumerate(reversed(_chain(error))):
        if index:
            yield "and then:"
        yield said(one)
        for frame in traceback.extract_tb(one.__traceback__, -MAX_FRAMES):
            yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
        if isinstance(one, BaseExceptionGroup):
            yield from (f"  in the group: {said(member)}" for member in one.exceptions[:MAX_CHAIN])


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found and len(found) < MAX_CHAIN:
        found.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return found


def _safe_text(error: BaseException) -> str:
    if isinstance(error, SettingsError) or getattr(error, "has_no_data", False) is True:
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or ""
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str) and state:
        return f"SQLSTATE {state}" if state.startswith(OF_DATA) else f"SQLSTATE {state}, {_primary(error)}"
    return ""


def _primary(error: Any) -> str:
    """What Postgres says first, without detail and context."""
    return str(getattr(getattr(error, "diag", None), "message_primary", None) or "")


def _exception_of(found: object) -> BaseException | None:
    """Of what `exc_info` may be: an exception, a triple, True for the current one."""
    if isinstance(found, BaseException):
        return found
    if isinstance(found, tuple):
        return found[1] if len(found) > 1 and isinstance(found[1], BaseException) else None
    return sys.exception() if found else None
