"""Is this text JSON that every part can carry? Checked once at the edge, then stored and handed on byte
for byte.

A payload or a result that Postgres, a handler's parser or jsonb would refuse later must be refused before
it enters a batch with its neighbours. The check works on the text itself where the parsed value would hide
something (a duplicate key's first value), and the ordinary 250 bytes cost about 8 µs: the exact checks run
only where a cheap search says that they could find something.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_BYTES = 1024 * 1024
"""Of a payload or a result, in UTF-8."""
MAX_DEPTH = 32
"""Levels of objects and arrays; `{}` is one."""

# What can be out of a double's range: 100 digits in a row, or an exponent of three digits (10^100 * 10^99
# still fits); NaN and Infinity, which Python's parser takes for numbers. Hits within strings only cost the
# slower parse. Searched in a translation that has one digit: a regular expression for it costs 20 µs,
# eight times the rest.
_ONE_DIGIT = bytes.maketrans(b"123456789E", b"000000000e")
_HUNDRED_DIGITS = b"0" * 100
# Walks the escapes of a valid text in order. A whole surrogate pair is consumed first, so what is left is
# alone.
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|u(?P<alone>[dD][89a-fA-F][0-9a-fA-F]{2})|u(?P<nul>0000)|.)"
)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NOT_A_BRACKET = re.compile(r"[^\[\]]+")
_PLAIN = json.JSONDecoder()


def violations(text: bytes, *, require_object: bool, what: str) -> list[str]:
    """What keeps `text` from being stored, one sentence each; empty if nothing does.

    `what` names it in the sentences ("the payload"). `require_object`: only `{…}` will do.
    """
    return examine(text, require_object=require_object, what=what)[1]


def examine(text: bytes, *, require_object: bool, what: str) -> tuple[Any, list[str]]:
    """The parsed value and the violations; the value means something only if there are none."""
    if len(text) > MAX_BYTES:
        return None, [f"{what} has {len(text)} bytes; at most {MAX_BYTES} are allowed"]
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        return None, [f"{what} is not UTF-8: {error.reason} at byte {error.start}"]
    found: list[str] = []
    try:
        value = _parse(decoded, found, what) if _is_suspicious(text) else _PLAIN.decode(decoded)
    except json.JSONDecodeError as error:
        return None, [f"{what} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"]
    except RecursionError:
        return None, [_too_deep(what)]
    found += _found_in_text(decoded, what)
    if require_object and not isinstance(value, dict):
        found.append(f"{what} must be a JSON object, not {_json_type(value)}")
    return value, found


def _is_suspicious(text: bytes) -> bool:
    folded = text.translate(_ONE_DIGIT)
    return (
        b"e000" in folded
        or b"e+000" in folded
        or b"NaN" in folded
        or b"Infinity" in folded
        or _HUNDRED_DIGITS in folded
    )


def _parse(decoded: str, found: list[str], what: str) -> Any:
    numbers = _Numbers()
    decoder = json.JSONDecoder(parse_float=numbers.real, parse_int=numbers.whole, parse_constant=numbers.constant)
    value = decoder.decode(decoded)
    found += [f"{what} contains {refused}" for refused in numbers.refused]
    return value


class _Numbers:
    """Parses numbers and notes the first of each sort that no double can hold."""

    def __init__(self) -> None:
        self._refused: dict[str, str] = {}

    @property
    def refused(self) -> list[str]:
        return list(self._refused.values())

    def real(self, literal: str) -> float:
        number = float(literal)
        if math.isinf(number):
            self._refuse_range(literal)
        return number

    def whole(self, literal: str) -> int:
        # Python refuses to convert thousands of digits; 309 is where doubles end.
        if len(literal) < 309:
            return int(literal)
        if math.isinf(float(literal)):
            self._refuse_range(literal)
            return 0
        return int(literal)

    def constant(self, literal: str) -> float:
        self._refused.setdefault(literal, f"{literal}, which is no JSON")
        return 0.0

    def _refuse_range(self, literal: str) -> None:
        shown = literal if len(literal) <= 20 else literal[:20] + "…"
        self._refused.setdefault("range", f"the number {shown}, which is beyond the range of a double")


def _found_in_text(decoded: str, what: str) -> list[str]:
    found: list[str] = []
    if "\\u" in decoded:
        escapes = [match.lastgroup for match in _ESCAPE.finditer(decoded) if match.lastgroup]
        if "nul" in escapes:
            found.append(f"{what} contains the character NUL (\\u0000)")
        if "alone" in escapes:
            found.append(f"{what} contains half a surrogate pair (\\ud800 to \\udfff), which is no character")
    if decoded.count("{") + decoded.count("[") > MAX_DEPTH and _is_too_deep(decoded):
        found.append(_too_deep(what))
    return found


def _is_too_deep(decoded: str) -> bool:
    """Take the innermost brackets away, level by level: at C speed, where a walk in Python would take 100
    ms a MiB.
    """
    without_strings = _STRING.sub("", decoded) if '"' in decoded else decoded
    brackets = _NOT_A_BRACKET.sub("", without_strings.replace("{", "[").replace("}", "]"))
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace("[]", "")
        if not brackets:
            return False
    return True


def _too_deep(what: str) -> str:
    return f"{what} is nested too deeply; at most {MAX_DEPTH} levels are allowed"


def _json_type(value: object) -> str:
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "null")
