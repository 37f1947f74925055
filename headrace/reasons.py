"""The names of reasons, as they stand in errors. Apart from the errors, which need gRPC."""

from __future__ import annotations

from headrace.v1.error_pb2 import Reason

REASON_PREFIX = "REASON_"


def reason_name(number: int) -> str:
    """Return the reason's name without prefix, "" for none, the number as text if this version does not know it."""
    if number == Reason.REASON_UNSPECIFIED:
        return ""
    try:
        return Reason.Name(Reason.ValueType(number)).removeprefix(REASON_PREFIX)
    except ValueError:
        return str(number)
