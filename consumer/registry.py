"""Which kinds this process can run: collected from the modules that it is given, never registered globally."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import Any, TypeGuard

import pydantic

from headrace.handlers import (
    Execution,
    HandlerDeclaration,
    ShardedHandler,
    check_sharded,
    declaration_of,
    input_model,
)
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.queues import DEFAULT_QUEUE
from headrace_core.tasks.kinds import KindRow

BUILT_IN = "consumer.builtin"


@dataclass(frozen=True, slots=True)
class RegisteredHandler:
    """A kind as this process runs it. `timeout` is in seconds; exactly one of `function` and `sharded` is there."""

    kind: str
    queue: str
    timeout: float
    execution: Execution
    batch: bool
    origin: str
    """Where it was declared, `module.name`: for error messages."""
    input_model: type[pydantic.BaseModel] | None
    function: Callable[..., Any] | None = None
    sharded: ShardedHandler | None = None
    progress_timeout: float | None = None
    """In seconds; None: it may be silent until its timeout."""

    @property
    def kind_row(self) -> KindRow:
        """What is registered in Postgres. The hash names the schema: equal models of two releases share a row."""
        if self.input_model is None:
            return KindRow(self.kind, "any", None, self.queue, self.sharded is not None)
        schema = json.dumps(self.input_model.model_json_schema(), sort_keys=True).encode()
        digest = hashlib.sha256(schema).hexdigest()[:32]
        return KindRow(self.kind, digest, schema, self.queue, self.sharded is not None)


@dataclass(frozen=True, slots=True)
class Registry:
    """Everything that this process can run, by kind, and the modules that it came from."""

    handlers: dict[str, RegisteredHandler]
    modules: tuple[str, ...]
    queues: dict[str, list[RegisteredHandler]] = field(default_factory=dict)
    """By the queue that the handlers name: the queues that are pulled."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds, sorted."""
        return tuple(sorted(self.handlers))

    @property
    def sharded(self) -> tuple[str, ...]:
        """Those of them whose tasks begin with a plan."""
        return tuple(kind for kind in self.kinds if self.handlers[kind].sharded is not None)


def collect(modules: Sequence[str], *, built_in: bool = True) -> Registry:
    """Import `modules` (and the built-in kinds) and collect their handlers.

    Raises:
        SettingsError: a module that cannot be imported or declares nothing, a kind declared twice.
    """
    names = list(dict.fromkeys(([BUILT_IN] if built_in else []) + list(modules)))
    handlers: dict[str, RegisteredHandler] = {}
    for name in names:
        found = list(_handlers_of(_imported(name)))
        if not found:
            raise SettingsError(f"HEADRACE_HANDLERS: the module {name!r} has no handler; decorate one with @handler")
        for handler in found:
            _add(handlers, handler)
    return Registry(handlers, tuple(modules), _by_queue(handlers.values()))


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise SettingsError(
            f"HEADRACE_HANDLERS: the module {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _add(handlers: dict[str, RegisteredHandler], handler: RegisteredHandler) -> None:
    other = handlers.get(handler.kind)
    if other is None:
        handlers[handler.kind] = handler
    elif other.origin != handler.origin:  # the same one, imported into a second module
        raise SettingsError(f"kind {handler.kind!r} is declared twice: by {other.origin} and by {handler.origin}")


def _by_queue(handlers: Iterable[RegisteredHandler]) -> dict[str, list[RegisteredHandler]]:
    queues: dict[str, list[RegisteredHandler]] = {}
    for handler in handlers:
        queues.setdefault(handler.queue, []).append(handler)
    return queues


def _handlers_of(module: ModuleType) -> Iterator[RegisteredHandler]:
    for value in list(vars(module).values()):
        declaration = declaration_of(value)
        if declaration is not None:
            yield _of_function(declaration)
        elif _is_sharded(value):
            yield _of_class(value)


def _is_sharded(value: object) -> TypeGuard[type[ShardedHandler]]:
    """A finished subclass. One without a kind, or with abstract methods, is a base of the user's own."""
    if not inspect.isclass(value) or not issubclass(value, ShardedHandler) or value is ShardedHandler:
        return False
    return hasattr(value, "kind") and not inspect.isabstract(value)


def _of_function(declaration: HandlerDeclaration) -> RegisteredHandler:
    function = declaration.function
    return RegisteredHandler(
        kind=declaration.kind,
        queue=declaration.queue or DEFAULT_QUEUE,
        timeout=declaration.timeout.total_seconds(),
        execution=declaration.execution,
        batch=declaration.batch,
        origin=f"{function.__module__}.{function.__qualname__}",
        input_model=declaration.input_model,
        function=function,
        progress_timeout=_seconds(declaration.progress_timeout),
    )


def _of_class(handler_class: type[ShardedHandler]) -> RegisteredHandler:
    origin = f"{handler_class.__module__}.{handler_class.__qualname__}"
    try:
        check_sharded(handler_class)
        instance = handler_class()
        model = input_model(instance.plan, 1)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{origin}: {error}") from error
    return RegisteredHandler(
        kind=handler_class.kind,
        queue=handler_class.queue or DEFAULT_QUEUE,
        timeout=handler_class.timeout.total_seconds(),
        execution="async",
        batch=False,
        origin=origin,
        input_model=model,
        sharded=instance,
        progress_timeout=_seconds(handler_class.progress_timeout),
    )


def _seconds(limit: timedelta | None) -> float | None:
    return None if limit is None else limit.total_seconds()
