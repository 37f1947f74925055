"""Logs: one line per event on standard error, JSON for machines or coloured for people.

Every call names what happened in a stable, machine-readable `action`: `log.info("took over", action="takeover")`.
Texts may change; actions may not. Lines of other libraries come out in the same form. Passwords in addresses, and what
exceptions say, are cut out here, so that no caller can forget it: no payload, result, error of a handler, label, key or
token is in any line, at whatever level.
"""

import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from headrace_core.telemetry.failures import cut_asyncio, render_exception
from headrace_core.telemetry.subject import add_subject

LogFormat = Literal["json", "console"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Chatty at info about every request or connection; their warnings still matter.
QUIET = ("uvicorn", "uvicorn.access", "uvicorn.error", "httpx", "httpcore", "openai", "asyncio", "nats")
# The last @ before the path: a password may hold one. Of NATS, a name alone is a token.
PASSWORD = re.compile(r"(?P<before>\w://[^/@\s:]*:)[^/\s]+@|(?P<nats>\b(?:nats|tls|wss?)://)[^/@\s:]+@")
PARAMETER = re.compile(r"(?P<name>\b(?:ssl)?password=)[^&\s]+", re.IGNORECASE)


def configure(level: str, log_format: LogFormat, service: str) -> None:
    """Send structlog's and the standard library's lines to standard error.

    `level` is one of LEVELS; `service` stands in every line. Call once, before the first line; calling again replaces.
    """
    threshold = LEVELS[level]
    shared = _processors(service)
    finish = _finishers(log_format)
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def get(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry `module: name`. Safe at import time: it is bound at its first line."""
    logger: FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def without_passwords(text: str) -> str:
    """`text` with the password of every address in it, and a token of NATS, replaced by three stars."""
    return PARAMETER.sub(r"\g<name>***", PASSWORD.sub(lambda found: f"{found['before'] or found['nats']}***@", text))


def _processors(service: str) -> list[Processor]:
    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return [
        structlog.contextvars.merge_contextvars,
        add_subject,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]


def _finishers(log_format: LogFormat) -> list[Processor]:
    cut: list[Processor] = [render_exception, cut_asyncio, _cut_passwords]
    if log_format == "json":
        return [*cut, structlog.processors.JSONRenderer(default=str)]
    return [*cut, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


def _cut_passwords(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and ("://" in value or "assword=" in value):
            event[key] = without_passwords(value)
    return event
