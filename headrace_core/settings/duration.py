"""Durations as people write them: `5`, `"5s"`, `"250ms"`, `"5m"`."""

import re
from typing import Annotated

from pydantic import BeforeValidator

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PATTERN = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)")


def seconds(value: object) -> object:
    """Seconds of a written duration; anything that is not text is left to the validation that follows.

    Raises ValueError for text that is no duration.
    """
    if not isinstance(value, str):
        return value
    match = PATTERN.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'{value!r} is no duration; write seconds (5) or a text like "5s", "250ms", "5m", "1h"')
    return float(match["number"]) * UNITS[match["unit"]]


Seconds = Annotated[float, BeforeValidator(seconds)]
