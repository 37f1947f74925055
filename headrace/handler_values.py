"""What goes into a handler and comes out of it, as JSON text: one set of rules for consumers and for the test kit."""

from __future__ import annotations

import json
import math
from typing import Any

import pydantic

from headrace.json_text import violations
from headrace.payload import jsonable

MAX_SHARDS = 10_000
MAX_PLAN_BYTES = 16 * 1024 * 1024
"""Of all shards of a plan: they are stored in one statement."""


class InputRefused(Exception):
    """The payload does not fit the handler's model: no attempt of it can succeed."""


class ResultRefused(Exception):
    """What the handler returned cannot be stored."""


def decoded(payload: bytes, model: type[pydantic.BaseModel] | None, kind: str) -> Any:
    """The payload as the handler's model, or as plain JSON values where there is none.

    Raises:
        InputRefused: it does not fit. The message says where and why without the values: they may be secrets.
    """
    if model is None:
        return json.loads(payload)
    try:
        return model.model_validate_json(payload)
    except pydantic.ValidationError as error:
        raise InputRefused(_explained(kind, error)) from error


def _explained(kind: str, error: pydantic.ValidationError) -> str:
    problems = [
        f"{'.'.join(str(part) for part in item['loc']) or 'input'}: {item['msg']}"
        for item in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    shown = "; ".join(problems[:10])
    return f"the payload does not fit {kind}'s input: {shown}"


def planned(shards: Any, quorum: float) -> tuple[tuple[bytes, ...], int]:
    """What a plan returned: its shards as JSON text, and how many of them must complete.

    Raises:
        ResultRefused: it is no list of JSON objects, or too long.
    """
    shards = [] if shards is None else shards
    if not isinstance(shards, list | tuple):
        raise ResultRefused(f"plan() must return a list of JSON objects, not {type(shards).__name__}")
    if len(shards) > MAX_SHARDS:
        raise ResultRefused(f"plan() returned {len(shards)} shards; at most {MAX_SHARDS} are allowed")
    texts = tuple(encoded(shard, f"shard {index}", require_object=True) for index, shard in enumerate(shards))
    if (size := sum(map(len, texts))) > MAX_PLAN_BYTES:
        raise ResultRefused(f"the shards of plan() have {size} bytes; at most {MAX_PLAN_BYTES} are allowed in all")
    return texts, needed_shards(len(texts), quorum)


def needed_shards(total: int, quorum: float) -> int:
    """How many of `total` shards must complete. The product is rounded first: 0.07 * 100 is 7.000000000000001."""
    return min(total, math.ceil(round(total * quorum, 9)))


def encoded(value: Any, what: str, *, require_object: bool = False) -> bytes:
    """`value` as UTF-8 JSON that Postgres and every reader can carry. `what` names it in errors ("the result").

    Raises:
        ResultRefused: it is no JSON value (NaN and Infinity included), too large or too deep.
    """
    try:
        text = _STRICT.encode(value).encode()
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise ResultRefused(f"{what} is not JSON: {error}") from error
    found = violations(text, require_object=require_object, what=what)
    if found:
        raise ResultRefused("; ".join(found))
    return text


def checkpoint_text(data: Any) -> bytes:
    """A checkpoint as JSON text; ValueError for what is none."""
    try:
        return encoded(data, "the checkpoint")
    except ResultRefused as error:
        raise ValueError(str(error)) from error


def matched(answers: Any, expected: int) -> list[Any]:
    """What a batch handler returned, as a list with an answer for each of the `expected` inputs.

    Raises:
        TypeError: it is no list.
        ValueError: it has another length.
    """
    if not isinstance(answers, list | tuple):
        raise TypeError(f"a batch handler must return a list, not {type(answers).__name__}")
    if len(answers) != expected:
        raise ValueError(f"a batch handler was given {expected} inputs and returned {len(answers)} answers")
    return list(answers)


def _plain(value: object) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return jsonable(value)
    raise TypeError(f"{type(value).__name__} is no JSON value; return a dict, a list or a pydantic model")


# Once: json.dumps makes an encoder for each call with options of its own.
_STRICT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
