"""From JSON text to a handler's arguments, and from what it returned to JSON text. No I/O.

The same code runs in the consumer and in its worker processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from consumer.registry import RegisteredHandler
from headrace.handler_values import InputRefused, ResultRefused, decoded, encoded, planned
from headrace.handlers import NonRetryable, RetryAfter
from headrace_core.tasks.model import UnitType
from headrace_core.tasks.outcome import Planned, Raised, Succeeded


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
    value = decoded(payload, handler.input_model, handler.kind)
    return [value, [json.loads(part) for part in parts]] if unit_type == "MERGE" else [value]


def outcome_of(handler: RegisteredHandler, unit_type: UnitType, value: Any) -> Succeeded | Planned | Raised:
    """What a returned value means; a value that cannot be stored is a failure that no retry mends."""
    try:
        if isinstance(value, BaseException):
            return raised(value)  # a batch handler returned it for one of its inputs
        if unit_type == "PLAN":
            assert handler.sharded is not None
            return Planned(*planned(value, handler.sharded.quorum))
        return Succeeded(encoded(value, "the result"))
    except ResultRefused as error:
        return Raised("ResultRefused", str(error), retryable=False)


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
