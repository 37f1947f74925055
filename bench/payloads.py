"""What the tasks of the benchmarks carry: about 200 bytes of JSON, each different."""

from __future__ import annotations

import json

_TEXT = "A headrace is the channel that carries a stream to the wheel of a mill, where its fall is put to work. " * 2


def payload(number: int) -> bytes:
    """The input of task `number`, as the SDK sends it and as `echo` gives it back: without spaces."""
    return json.dumps({"number": number, "text": _TEXT[:170]}, separators=(",", ":")).encode()
