"""Payloads as strict JSON: what cannot be stored and read back the same is refused before it is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def invalid_payload(what: str) -> InvalidFieldsError:
    """Return the error that names the field `payload`."""
    return InvalidFieldsError(f"payload: {what}", violations=[Violation("payload", what)])


def _as_object(payload: Payload | None) -> dict[str, Any]:
    if payload is None:
        return {}
    if isinstance(payload, pydantic.BaseModel):
        # By alias: that is how the handler's model, and its registered schema, name the fields.
        content = payload.model_dump(mode="json", by_alias=True)
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
