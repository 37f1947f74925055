"""The handler API: what users write against.

A consumer is given modules and collects what it finds in them: functions decorated with `handler` and subclasses of
`ShardedHandler`. There is no global registry, and importing a handler module has no effect.

    @handler("resize", queue="images", timeout=timedelta(minutes=5))
    async def resize(ctx: TaskContext, input: ResizeInput) -> ResizeResult: ...
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import pydantic

Execution = Literal["async", "thread", "process"]
DEFAULT_TIMEOUT = timedelta(minutes=5)
KIND_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,128}")
QUEUE_PATTERN = re.compile(r"[a-z0-9_-]{1,64}")
_MARK = "__headrace_handler__"
F = TypeVar("F", bound=Callable[..., Any])


class NonRetryable(Exception):
    """Raised by a handler: fails the task at once, whatever budget is left."""

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        """`reason` is a short code for programs; it becomes the error's type. Default: the class name."""
        super().__init__(message)
        self.reason = reason


class RetryAfter(Exception):
    """Raised by a handler: fails this attempt; the next one starts no sooner than after `delay`."""

    def __init__(self, message: str, delay: timedelta) -> None:
        """`delay` is a lower bound: the queue's own backoff may be longer."""
        super().__init__(message)
        self.delay = delay


class Log(Protocol):
    """The bound logger of a context: structured, already carrying task, unit and attempt."""

    def debug(self, event: str, **fields: Any) -> Any:
        """Log `event` for whoever looks closely."""

    def info(self, event: str, **fields: Any) -> Any:
        """Log `event` for whoever reads along."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Log `event`: something to look at."""

    def error(self, event: str, **fields: Any) -> Any:
        """Log `event`: something to do."""


class Cancelled(Protocol):
    """Set once the unit is to end: cancelled, past its deadline, draining or fenced."""

    def is_set(self) -> bool:
        """True from then on."""


class _Facts(Protocol):
    """What both contexts know. Attributes are read-only for handlers, `usage` apart."""

    task_id: str
    """The task's id; in plan, shard and merge as well."""
    attempt: int
    """Counts from 1 within the unit and generation."""
    epoch: int
    """The lease's number, for fencing the handler's own external writes: greater is newer."""
    deadline: datetime | None
    """Aware UTC, or None."""
    restored: Any
    """What an earlier attempt of this unit gave to `checkpoint`, or None."""
    shard_index: int | None
    """From 0 in plan order; None outside shards."""
    log: Log
    usage: dict[str, float]
    """Counters, raised by `count`."""

    @property
    def cancelled(self) -> Cancelled: ...

    def count(self, name: str, amount: float = 1) -> None:
        """Raise the usage counter `name` (tokens, pages, …)."""


class TaskContext(_Facts, Protocol):
    """What an async handler is given."""

    async def progress(self, fraction: float, message: str = "") -> None:
        """Report progress, 0 to 1 (clamped). Cheap: reports are coalesced to at most ten writes a second."""

    async def output(self, text: str) -> None:
        """Stream partial output to watchers. Waits while 1 MiB of it is not yet written."""

    async def checkpoint(self, data: Any) -> None:
        """Store `data` (JSON, at most 1 MiB) for the unit's next attempt; durable when it returns."""


class SyncTaskContext(_Facts, Protocol):
    """What a plain function or a process handler is given: the same names, blocking."""

    def progress(self, fraction: float, message: str = "") -> None:
        """See `TaskContext.progress`."""

    def output(self, text: str) -> None:
        """See `TaskContext.output`."""

    def checkpoint(self, data: Any) -> None:
        """See `TaskContext.checkpoint`."""


@dataclass(frozen=True, slots=True)
class HandlerDeclaration:
    """What `handler` noted about a function."""

    kind: str
    queue: str | None
    timeout: timedelta
    execution: Execution
    batch: bool
    function: Callable[..., Any]
    input_model: type[pydantic.BaseModel] | None
    progress_timeout: timedelta | None = None


def handler(
    kind: str,
    *,
    queue: str | None = None,
    timeout: timedelta = DEFAULT_TIMEOUT,
    execution: Execution | None = None,
    batch: bool = False,
    progress_timeout: timedelta | None = None,
) -> Callable[[F], F]:
    """Declare a function `(ctx, input)` as the handler of `kind`; it stays callable.

    Args:
        kind: what clients submit, `[A-Za-z0-9._-]{1,128}`.
        queue: where its tasks wait by default; None: `default`.
        timeout: for one attempt. Must be positive.
        execution: `async` for coroutine functions, `thread` for plain ones, `process` for CPU-bound or untrusted work
            (killed on timeout; a crash costs one task). None: by the function.
        batch: the function takes a list of inputs and returns a result, or an exception, for each, in order.
        progress_timeout: how long an attempt may run without a call of `ctx.progress`, `output` or `checkpoint`; then
            it is ended and counted as a failure. Must be positive. None: only `timeout` counts.

    Raises:
        ValueError: a malformed kind or queue, a timeout that is not positive.
        TypeError: an execution that the function cannot have.
    """
    _check_names(kind, queue)
    _check_times(kind, timeout, progress_timeout)

    def declare(function: F) -> F:
        chosen = _execution_of(function, execution, batch)
        model = input_model(function, 1)
        declaration = HandlerDeclaration(kind, queue, timeout, chosen, batch, function, model, progress_timeout)
        setattr(function, _MARK, declaration)
        return function

    return declare


class ShardedHandler:
    """A task in parts: planned once, its shards run on any consumer, merged once.

    One instance per process, constructed without arguments. Methods may be called concurrently.
    """

    kind: ClassVar[str]
    queue: ClassVar[str | None] = None
    timeout: ClassVar[timedelta] = DEFAULT_TIMEOUT
    """For one attempt of the plan, of a shard, of the merge."""
    progress_timeout: ClassVar[timedelta | None] = None
    """How long one of them may run without a report; None: only `timeout` counts. See `handler`."""
    quorum: ClassVar[float] = 1.0
    """The share of the shards that must complete, above 0 and up to 1. Below 1, `parts` may lack some."""

    async def plan(self, ctx: TaskContext, input: Any) -> Sequence[dict[str, Any]]:  # noqa: ARG002 (the signature is the API)
        """Split the input: a list of shards, JSON objects, at most 10,000. None: `merge` runs with no parts."""
        raise TypeError(f"{type(self).__name__} does not define plan()")

    async def run_shard(self, ctx: TaskContext, shard: Any) -> Any:  # noqa: ARG002 (the signature is the API)
        """Run one shard; its return value is a part."""
        raise TypeError(f"{type(self).__name__} does not define run_shard()")

    async def merge(self, ctx: TaskContext, input: Any, parts: list[Any]) -> Any:  # noqa: ARG002 (the signature is the API)
        """Make the result of the parts, which come in plan order; those missing under a quorum are left out."""
        raise TypeError(f"{type(self).__name__} does not define merge()")


def declaration_of(value: object) -> HandlerDeclaration | None:
    """The declaration of a decorated function; None for anything else."""
    found = getattr(value, _MARK, None)
    return found if isinstance(found, HandlerDeclaration) else None


def check_sharded(handler_class: type[ShardedHandler]) -> None:
    """Raise ValueError, naming the class, if its attributes cannot work."""
    name = handler_class.__qualname__
    if not isinstance(getattr(handler_class, "kind", None), str):
        raise ValueError(f"{name}: a ShardedHandler needs a class attribute `kind`")
    if not 0 < handler_class.quorum <= 1:
        raise ValueError(f"{name}.quorum is {handler_class.quorum}; it must be above 0 and at most 1")
    _check_names(handler_class.kind, handler_class.queue)
    _check_times(handler_class.kind, handler_class.timeout, handler_class.progress_timeout)


def input_model(function: Callable[..., Any], position: int) -> type[pydantic.BaseModel] | None:
    """The pydantic model that annotates the parameter at `position` (or the items of its list); None for dicts."""
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) <= position:
        raise TypeError(f"{function.__qualname__} must take (ctx, input); it takes {len(parameters)} parameter(s)")
    annotation = typing.get_type_hints(function).get(parameters[position])
    candidates = [annotation, *typing.get_args(annotation)]
    models = [item for item in candidates if isinstance(item, type) and issubclass(item, pydantic.BaseModel)]
    return models[0] if models else None


def _check_names(kind: str, queue: str | None) -> None:
    if not KIND_PATTERN.fullmatch(kind):
        raise ValueError(f"kind {kind!r} does not match {KIND_PATTERN.pattern}")
    if queue is not None and not QUEUE_PATTERN.fullmatch(queue):
        raise ValueError(f"queue {queue!r} of kind {kind!r} does not match {QUEUE_PATTERN.pattern}")


def _check_times(kind: str, timeout: timedelta, progress_timeout: timedelta | None) -> None:
    if timeout <= timedelta(0):
        raise ValueError(f"timeout {timeout} of kind {kind!r} is not positive")
    if progress_timeout is not None and progress_timeout <= timedelta(0):
        raise ValueError(f"progress_timeout {progress_timeout} of kind {kind!r} is not positive")


def _execution_of(function: Callable[..., Any], asked: Execution | None, batch: bool) -> Execution:
    is_async = inspect.iscoroutinefunction(function)
    chosen: Execution = asked or ("async" if is_async else "thread")
    if chosen not in ("async", "thread", "process"):
        raise ValueError(f"{function.__qualname__}: execution {chosen!r} is not async, thread or process")
    if is_async != (chosen == "async"):
        form = "an async" if is_async else "a plain"
        raise TypeError(f"{function.__qualname__}: execution={chosen!r} does not fit {form} function")
    if batch and chosen == "process":
        raise TypeError(f"{function.__qualname__}: a batch handler runs as async or thread, not in a process")
    return chosen
