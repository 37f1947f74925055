"""Turns pydantic's findings into the sentence that a person needs: which setting, its value, what is allowed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from headrace_core.telemetry.logs import without_passwords

SECRET_WORDS = ("key", "password", "secret", "token")


def allowed(field: FieldInfo) -> str:
    """What a field may hold: `1 to 100`, `nats or none`, a pattern; empty if its type says it all."""
    choices = _choices(field.annotation)
    if choices:
        return " or ".join(str(choice) for choice in choices)
    bounds = _bounds(field)
    if "ge" in bounds and "le" in bounds:
        return f"{_number(bounds['ge'])} to {_number(bounds['le'])}"
    if bounds:
        return ", ".join(f"{BOUND_WORDS[kind]} {_number(bound)}" for kind, bound in bounds.items())
    return next((str(pattern) for item in field.metadata if (pattern := getattr(item, "pattern", None))), "")


BOUND_WORDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def explain(error: ValidationError, model: type[BaseModel], name: Callable[[str], str] = str) -> str:
    """All findings of a failed validation of `model`, joined by semicolons. `name`: what the reader calls a field."""
    return "; ".join(_finding(detail, model, name) for detail in error.errors())


def _finding(detail: ErrorDetails, model: type[BaseModel], name: Callable[[str], str]) -> str:
    path = [part for part in detail["loc"] if isinstance(part, str)]
    shown = name(".".join(path))
    if detail["type"] == "extra_forbidden":
        keys = sorted(_owner(model, path[:-1]).model_fields)
        return f"unknown key {shown}; allowed keys: {', '.join(keys)}"
    if detail["type"] == "missing":
        return f"{shown} is missing"
    if not path:
        return _said(detail)
    field = _owner(model, path[:-1]).model_fields.get(path[-1])
    range_of_values = allowed(field) if field else ""
    hint = f" (allowed: {range_of_values})" if range_of_values else ""
    return f"{shown} = {_shown_value(path[-1], detail['input'])} is wrong: {_said(detail)}{hint}"


def _said(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    is_name = message[1:2].isupper()  # HEADRACE_…: it stays as it is
    return without_passwords(message if is_name else message[:1].lower() + message[1:])


def _owner(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The nested model that a path leads to."""
    for part in path:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model


def _shown_value(name: str, value: object) -> str:
    if any(word in name.lower() for word in SECRET_WORDS):
        return "***"
    return without_passwords(repr(value))[:100]


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _bounds(field: FieldInfo) -> dict[str, float]:
    return dict(_each_bound(field))


def _each_bound(field: FieldInfo) -> Iterator[tuple[str, float]]:
    for item in field.metadata:
        for kind, of in (
            ("ge", annotated_types.Ge),
            ("gt", annotated_types.Gt),
            ("le", annotated_types.Le),
            ("lt", annotated_types.Lt),
        ):
            if isinstance(item, of):
                yield kind, getattr(item, kind)
