"""Payloads as strict JSON: what cannot be stored and read back the same is refused before it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pydantic

from headrace.errors import InvalidFieldsError, Violation

Payload: TypeAlias = Mapping[str, Any] | pydantic.BaseModel
MAX_PAYLOAD_BYTES = 1024 * 1024


def encode_payload(payload: Payload | None) -> bytes:
    """Return `payload` as UTF-8 JSON; None is {}.

    Raises InvalidFieldsError (before anything is sent) for what is no JSON object: NaN, infinities, unknown types, lone
    surrogates, cycles, more than 1 MiB.
    """
    text = _dump(_as_object(payload))
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise invalid_payload("a text in it holds a lone surrogate, which is no UTF-8") from error
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise invalid_payload(
            f"it has {len(encoded):,} bytes and the limit is {MAX_PAYLOAD_BYTES:,}: store the data elsewhere and send "
            "where it is"
        )
    return encoded


def jsonable(model: pydantic.BaseModel, *, by_alias: bool = False) -> Any:
    """`model` as JSON values. Raises ValueError for what JSON has not.

    Pydantic writes NaN and infinities as null where a field's type does not say float: what was sent would not be what
    arrives.
    """
    content = model.model_dump(mode="json", by_alias=by_alias)
    if _holds(content, _is_null) and _holds(model.model_dump(), _is_no_number):
        raise ValueError("Out of range float values are not JSON compliant: NaN or an infinity in it would become null")
    return content


def invalid_payload(what: str) -> InvalidFieldsError:
    """Return the error that names the field `payload`."""
    return InvalidFieldsError(f"payload: {what}", violations=[Violation("payload", what)])


def _as_object(payload: Payload | None) -> dict[str, Any]:
    if payload is None:
        return {}
    if isinstance(payload, pydantic.BaseModel):
        try:
            # By alias: that is how the handler's model, and its registered schema, name the fields.
            content = jsonable(payload, by_alias=True)
        except (ValueError, RecursionError) as error:
            raise invalid_payload(f"it is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise invalid_payload(f"{type(payload).__name__} is no JSON object but a {type(content).__name__}")
        return content
    if isinstance(payload, Mapping):
        return dict(payload)
    raise invalid_payload(f"it must be a dict or a pydantic model, not a {type(payload).__name__}")


def _dump(content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise invalid_payload(f"it is no JSON: {error}") from error
    except RecursionError as error:
        raise invalid_payload("it is nested too deeply; the limit is 32 levels") from error


def _is_null(value: Any) -> bool:
    return value is None


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _holds(value: Any, wanted: Callable[[Any], bool]) -> bool:
    """Whether `wanted` is true of anything in a value of JSON's structure, sets and tuples included."""
    open_values: list[Any] = [value]
    while open_values:
        current = open_values.pop()
        if wanted(current):
            return True
        if isinstance(current, Mapping):
            open_values.extend(current.values())
        elif isinstance(current, list | tuple | set | frozenset):
            open_values.extend(current)
    return False
