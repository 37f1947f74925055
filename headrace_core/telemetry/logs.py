"""Logs: one line per event on standard error, JSON for machines or coloured for people.

Every call names what happened in a stable, machine-readable `action`: `log.info("took over", action="takeover")`.
Texts may change; actions may not. Lines of other libraries come out in the same form. Passwords in addresses are cut
out here, so that no caller can forget it.
"""

import logging
import re
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LogFormat = Literal["json", "console"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# Chatty at info about every request or connection; their warnings still matter.
QUIET = ("uvicorn", "uvicorn.access", "uvicorn.error", "httpx", "httpcore", "openai", "asyncio", "nats")
PASSWORD = re.compile(r"(?P<before>\w://[^/@\s:]*:)[^/@\s]+@")
# libpq takes it as a parameter, too, and NATS a token in place of user and password.
PARAMETER = re.compile(r"(?P<before>[?&](?:ssl)?password=)[^&\s\"']+")
TOKEN = re.compile(r"(?P<before>\b(?:nats|tls)://)[^/@\s:]+@")


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
    """`text` with the password of every address in it replaced by three stars."""
    text = TOKEN.sub(r"\g<before>***@", PASSWORD.sub(r"\g<before>***@", text))
    return PARAMETER.sub(r"\g<before>***", text)


def _processors(service: str) -> list[Processor]:
    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_service,
    ]


def _finishers(log_format: LogFormat) -> list[Processor]:
    # The exception becomes text first: addresses with passwords stand in tracebacks too.
    cut: list[Processor] = [structlog.processors.format_exc_info, _cut_passwords]
    if log_format == "json":
        return [*cut, structlog.processors.JSONRenderer(default=str)]
    plain = structlog.dev.plain_traceback
    return [*cut, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _cut_passwords(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = without_passwords(value)
    return event
