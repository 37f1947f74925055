"""Run one handler, or one call of a batch handler, without a broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Unpack

from headrace.handler_values import InputRefused, ResultRefused, decoded, encoded, matched
from headrace.handlers import HandlerDeclaration, declaration_of
from headrace.json_text import violations
from headrace.payload import Payload, encode_payload
from headrace.testing.contexts import (
    AsyncBatchContext,
    AsyncContext,
    Facts,
    RecordingContext,
    SyncBatchContext,
    SyncContext,
)
from headrace.testing.ending import Conditions, Ending, HandlerDidNotEnd, Interrupted, RunOptions
from headrace.testing.records import BatchRun, HandlerRun

__all__ = ["HandlerDidNotEnd", "run_batch", "run_handler"]


async def run_handler(
    handler: Callable[..., Any], input: Payload | None = None, **options: Unpack[RunOptions]
) -> HandlerRun:
    """Run one attempt of a function decorated with `headrace.handler` and return what it did.

    `input` is a payload as a client submits it, a dict or a pydantic model; the handler gets what a consumer would
    give it. Async functions run on this loop, others in a thread (process handlers too: a debugger works, a crash is
    the test's own).

    Raises:
        Exception: the handler's own, unchanged.
        InputRefused, InvalidFieldsError: the payload would not reach the handler.
        ResultRefused: what it returned is no JSON, too large or too deep.
        TimeoutError: it ran longer than its timeout, or reported nothing for its progress_timeout.
        HandlerDidNotEnd: it ignored its cancellation.
        TypeError: it is no handler, or a batch handler.
    """
    declaration = declared(handler)
    if declaration.batch:
        raise TypeError(f"{declaration.kind!r} is a batch handler: use run_batch")
    conditions = Conditions(**options)
    value = decoded(payload_text(input), declaration.input_model, declaration.kind)
    facts, limits = conditions.facts(declaration.kind), (declaration.timeout, declaration.progress_timeout)
    return await run_unit(declaration.function, [value], conditions, facts, *limits)


async def run_batch(
    handler: Callable[..., Any], inputs: Sequence[Payload | None], **options: Unpack[RunOptions]
) -> BatchRun:
    """Run one call of a batch handler for `inputs`, each a task of its own. Options and errors as `run_handler`.

    An input that does not fit the model fails alone, before the call. An exception that the handler returns for one
    input is that run's `error`; one that it raises is raised.
    """
    declaration = declared(handler)
    if not declaration.batch:
        raise TypeError(f"{declaration.kind!r} is no batch handler: use run_handler")
    conditions = Conditions(**options)
    ending = Ending(declaration.function, conditions, declaration.timeout, declaration.progress_timeout)
    facts = [conditions.facts(declaration.kind) for _ in inputs]
    contexts = [context_of(ending, item) for item in facts]
    fitting, values = _fitting(declaration, inputs, contexts)
    batch = BatchRun([context.run for context in contexts])
    if fitting:
        await _call_batch(ending, facts[0], fitting, values, batch)
    return batch


async def run_unit(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    conditions: Conditions,
    facts: Facts,
    timeout: timedelta,
    progress_timeout: timedelta | None,
    accept: Callable[[Any], Any] | None = None,
) -> HandlerRun:
    """Run one attempt of a unit. `accept` turns what it returned into the run's result; None: as JSON."""
    ending = Ending(function, conditions, timeout, progress_timeout)
    context = context_of(ending, facts)
    run = context.run
    try:
        run.result = (accept or as_result)(await ending.call(context, *arguments))
    except Interrupted as interruption:
        run.interrupted, run.error = True, interruption.__cause__
    except Exception as error:
        if conditions.raise_errors:
            raise
        run.error = error
    return run


def as_result(value: Any) -> Any:
    """What a client reads of a returned value. Raises ResultRefused."""
    return json.loads(encoded(value, "the result"))


def context_of(ending: Ending, facts: Facts) -> RecordingContext:
    """The context that fits the function."""
    context_class = AsyncContext if ending.is_async else SyncContext
    return context_class(facts, ending.cancelled, ending.look)


def payload_text(payload: Payload | None) -> bytes:
    """A payload as the SDK sends it and the producer stores it.

    Raises:
        InvalidFieldsError: the SDK would not send it.
        InputRefused: the producer would refuse it.
    """
    text = encode_payload(payload)
    found = violations(text, require_object=True, what="the payload")
    if found:
        raise InputRefused("; ".join(found))
    return text


def declared(handler: Callable[..., Any]) -> HandlerDeclaration:
    """What `headrace.handler` noted. Raises TypeError if it noted nothing."""
    declaration = declaration_of(handler)
    if declaration is None:
        name = getattr(handler, "__qualname__", repr(handler))
        raise TypeError(f"{name} is no handler; decorate it with @headrace.handler, or use run_sharded for a class")
    return declaration


def _fitting(
    declaration: HandlerDeclaration, inputs: Sequence[Payload | None], contexts: Sequence[RecordingContext]
) -> tuple[list[RecordingContext], list[Any]]:
    fitting: list[RecordingContext] = []
    values: list[Any] = []
    for item, context in zip(inputs, contexts, strict=True):
        try:
            values.append(decoded(payload_text(item), declaration.input_model, declaration.kind))
            fitting.append(context)
        except InputRefused as error:
            context.run.error = error
    return fitting, values


async def _call_batch(
    ending: Ending, facts: Facts, contexts: list[RecordingContext], values: list[Any], batch: BatchRun
) -> None:
    context_class = AsyncBatchContext if ending.is_async else SyncBatchContext
    context = context_class(facts, contexts, ending.cancelled)
    batch.usage = context.usage
    try:
        answers = matched(await ending.call(context, values), len(values))
    except Interrupted as interruption:
        batch.interrupted = True
        answers = [interruption.__cause__] * len(values)
    except Exception as error:
        if ending.conditions.raise_errors:
            raise
        answers = [error] * len(values)
    for member, answer in zip(contexts, answers, strict=True):
        _note_answer(member.run, answer, interrupted=batch.interrupted)


def _note_answer(run: HandlerRun, answer: Any, *, interrupted: bool) -> None:
    run.interrupted = interrupted
    try:
        if isinstance(answer, BaseException):
            run.error = answer
        else:
            run.result = as_result(answer)
    except ResultRefused as error:
        run.error = error
