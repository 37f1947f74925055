"""The payload of a request as the JSON text that is stored: as sent, or made from a protobuf Struct."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from headrace.v1 import producer_pb2

_WHOLE_BELOW = 2.0**53


def payload_text(request: producer_pb2.SubmitTaskRequest) -> bytes:
    """The payload as UTF-8 JSON text, not checked yet; `{}` if the request has none."""
    sent = request.WhichOneof("input")
    if sent == "payload_json":
        return request.payload_json
    return struct_text(request.payload) if sent == "payload" else b"{}"


def struct_text(struct: Struct) -> bytes:
    """A Struct as JSON text with sorted keys: a map of protobuf has no order, and its fingerprint must
    have one.

    Whole numbers below 2^53 become ints again: a Struct knows only doubles, and a handler that asked for
    an int is to get one. NaN and infinities come out as such, for the check of the text to refuse.
    """
    return json.dumps(_object(struct), ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode(
        "utf-8", "surrogatepass"
    )


def _object(struct: Struct) -> dict[str, Any]:
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if abs(number) < _WHOLE_BELOW and number.is_integer() else number
    if kind == "struct_value":
        return _object(value.struct_value)
    if kind == "list_value":
        return [_value(item) for item in value.list_value.values]
    # A Value without a kind is what old clients send for null.
    return getattr(value, kind) if kind in ("string_value", "bool_value") else None
