"""What people type, as values: JSON, labels, times, durations. Every error names the option and what it wants."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from headrace.cli.exits import usage_failure

STANDARD_INPUT = "-"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_text(source: str, option: str) -> str:
    """Return the UTF-8 text of the file `source`, or of standard input for "-"."""
    try:
        data = sys.stdin.buffer.read() if source == STANDARD_INPUT else Path(source).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise usage_failure(f"{option}: {source} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise usage_failure(f"{option}: {source} is not UTF-8 (byte {error.start})") from error


def json_object(argument: str, option: str = "--payload") -> dict[str, Any]:
    """Return the JSON object in `argument`: the text itself, @file, or - for standard input."""
    text = argument
    if argument == STANDARD_INPUT or argument.startswith("@"):
        text = read_text(argument.removeprefix("@"), option)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise usage_failure(f"{option}: this is no JSON: {error}") from error
    except RecursionError as error:
        raise usage_failure(f"{option}: this JSON is nested too deeply; the limit is 32 levels") from error
    if not isinstance(content, dict):
        raise usage_failure(f"{option}: a JSON object is wanted, such as {{}}, not {type(content).__name__}")
    return content


def labels(pairs: Iterable[str], option: str = "--label") -> dict[str, str]:
    """Return the labels in `pairs` of the form KEY=VALUE."""
    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise usage_failure(f"{option}: {pair!r} is not of the form KEY=VALUE")
        found[key] = value
    return found


def duration(text: str, option: str) -> timedelta:
    """Return the time span in `text`: 90 or 90s, 250ms, 5m, 2h, 1d."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise usage_failure(f"{option}: {text!r} is no duration; write 90s, 250ms, 5m, 2h or 1d")
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2] or "s"])
    except OverflowError as error:
        raise usage_failure(f"{option}: {text!r} is too long") from error


def moment(text: str, option: str) -> datetime:
    """Return the time in `text`: RFC 3339 with an offset or Z, or a duration from now."""
    if _DURATION.fullmatch(text.strip()):
        return datetime.now(UTC) + duration(text, option)
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise usage_failure(
            f"{option}: {text!r} is no time; write 2030-01-31T08:00:00Z, or a duration from now such as 5m"
        ) from error
    if parsed.utcoffset() is None:
        raise usage_failure(f"{option}: {text!r} has no time zone; add Z or an offset such as +01:00")
    return parsed


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
