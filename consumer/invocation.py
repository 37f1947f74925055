"""From JSON text to a handler's arguments, and from what it returned to JSON text. No I/O.

The same code runs in the consumer and in its worker processes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pydantic

from consumer.registry import RegisteredHandler
from headrace.handlers import NonRetryable, RetryAfter
from headrace_core.tasks.json_text import violations
from headrace_core.tasks.model import UnitType
from headrace_core.tasks.outcome import Planned, Raised, Succeeded

MAX_SHARDS = 10_000


class InputRefused(Exception):
    """The payload does not fit the handler's model: no attempt of it can succeed."""


class ResultRefused(Exception):
    """What the handler returned cannot be stored."""


def function_of(handler: RegisteredHandler, unit_type: UnitType) -> Callable[..., Any]:
    """The function or method that runs a unit of this type."""
    if handler.sharded is None:
        assert handler.function is not None
        return handler.function
    methods: dict[str, Callable[..., Any]] = {"SHARD": handler.sharded.run_shard, "MERGE": handler.sharded.merge}
    return methods.get(unit_type, handler.sharded.plan)


def arguments_of(handler: RegisteredHandler, unit_type: UnitType, payload: bytes, parts: Sequence[bytes]) -> list[Any]:
    """What follows the context in the call.

    Raises:
        InputRefused: the payload does not fit the handler's model.
    """
    if unit_type == "SHARD":
        return [json.loads(payload)]
    decoded = _decoded(handler, payload)
    return [decoded, [json.loads(part) for part in parts]] if unit_type == "MERGE" else [decoded]


def _decoded(handler: RegisteredHandler, payload: bytes) -> Any:
    if handler.input_model is None:
        return json.loads(payload)
    try:
        return handler.input_model.model_validate_json(payload)
    except pydantic.ValidationError as error:
        raise InputRefused(_explained(handler, error)) from error


def _explained(handler: RegisteredHandler, error: pydantic.ValidationError) -> str:
    """Say where and why without the values: they are the client's and may be secrets."""
    problems = [
        f"{'.'.join(str(part) for part in item['loc']) or 'input'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    shown = "; ".join(problems[:10])
    return f"the payload does not fit {handler.kind}'s input: {shown}"


def outcome_of(handler: RegisteredHandler, unit_type: UnitType, value: Any) -> Succeeded | Planned | Raised:
    """What a returned value means; a value that cannot be stored is a failure that no retry mends."""
    try:
        if isinstance(value, BaseException):
            return raised(value)  # a batch handler returned it for one of its inputs
        if unit_type == "PLAN":
            return _planned(handler, value)
        return Succeeded(encoded(value, "the result"))
    except ResultRefused as error:
        return Raised("ResultRefused", str(error), retryable=False)


def _planned(handler: RegisteredHandler, value: Any) -> Planned:
    assert handler.sharded is not None
    shards = [] if value is None else value
    if not isinstance(shards, list | tuple):
        raise ResultRefused(f"plan() must return a list of JSON objects, not {type(value).__name__}")
    if len(shards) > MAX_SHARDS:
        raise ResultRefused(f"plan() returned {len(shards)} shards; at most {MAX_SHARDS} are allowed")
    texts = tuple(encoded(shard, f"shard {index}", require_object=True) for index, shard in enumerate(shards))
    return Planned(texts, needed_shards(len(texts), handler.sharded.quorum))


def needed_shards(total: int, quorum: float) -> int:
    """How many of `total` shards must complete. The product is rounded first: 0.07 * 100 is 7.000000000000001."""
    return min(total, math.ceil(round(total * quorum, 9)))


def encoded(value: Any, what: str, *, require_object: bool = False) -> bytes:
    """`value` as UTF-8 JSON that Postgres and every reader can carry.

    Raises:
        ResultRefused: it is no JSON value (NaN and Infinity included), too large or too deep.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise ResultRefused(f"{what} is not JSON: {error}") from error
    found = violations(text, require_object=require_object, what=what)
    if found:
        raise ResultRefused("; ".join(found))
    return text


def _plain(value: object) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is no JSON value; return a dict, a list or a pydantic model")


def raised(error: BaseException) -> Raised:
    """An exception of a handler as an outcome."""
    if isinstance(error, InputRefused):
        return Raised("InputRefused", str(error), retryable=False)
    if isinstance(error, NonRetryable):
        return Raised(error.reason or type(error).__name__, str(error), retryable=False)
    if isinstance(error, RetryAfter):
        return Raised(type(error).__name__, str(error), retry_after=max(error.delay.total_seconds(), 0.0))
    return Raised(type(error).__name__, _text_of(error))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a __str__ of the user's, and the attempt must still be settled
        return f"(its __str__ raised {type(broken).__name__})"
