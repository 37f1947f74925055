"""Run a ShardedHandler without a broker: its plan, its shards, its merge, or all of them as one task."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias, Unpack

from headrace.handler_values import ResultRefused, decoded, encoded, needed_shards, planned
from headrace.handlers import NonRetryable, ShardedHandler, check_sharded, input_model
from headrace.payload import Payload
from headrace.testing.ending import Conditions, RunOptions
from headrace.testing.records import HandlerRun, ShardedRun, ShardRun
from headrace.testing.running import payload_text, run_unit

CONCURRENCY = 16
Sharded: TypeAlias = type[ShardedHandler] | ShardedHandler
"""A class, as a consumer is given it, or an instance that the test has made, with parts of its own choice."""


async def run_plan(handler: Sharded, input: Payload | None = None, **options: Unpack[RunOptions]) -> HandlerRun:
    """Run one attempt of `plan`; its result is the list of shards. Options and errors as `run_handler`."""
    return await _plan(_made(handler), input, Conditions(**options))


async def run_shard(
    handler: Sharded, shard: dict[str, Any], *, index: int = 0, **options: Unpack[RunOptions]
) -> HandlerRun:
    """Run one attempt of `run_shard`; its result is the part. Options and errors as `run_handler`."""
    return await _shard(_made(handler), shard, index, Conditions(**options))


async def run_merge(
    handler: Sharded,
    input: Payload | None = None,
    parts: Sequence[Any] = (),
    **options: Unpack[RunOptions],
) -> HandlerRun:
    """Run one attempt of `merge` on `parts`. Options and errors as `run_handler`."""
    return await _merge(_made(handler), input, parts, Conditions(**options))


async def run_sharded(
    handler: Sharded,
    input: Payload | None = None,
    *,
    max_attempts: int = 1,
    missing: Collection[int] = (),
    concurrency: int = CONCURRENCY,
    task_id: str | None = None,
    deadline: datetime | timedelta | None = None,
) -> ShardedRun:
    """Run a whole task: the plan, every shard, the merge.

    Of a class, plan, shards and merge get an instance each, as three consumers would have: what one keeps on `self` the
    others do not see. A shard has `max_attempts` attempts, without backoff, with its checkpoint. Under a quorum the
    parts of failed shards are left out, and those of `missing` (indexes): shards that were late.

    Raises:
        Exception: the plan's, the merge's, or the first that keeps the quorum from being reached; unchanged.
        ValueError: more `missing` than the quorum allows, or no such shards.
        InputRefused, ResultRefused, TimeoutError, HandlerDidNotEnd: as `run_handler`.
    """
    whole = Conditions(task_id=task_id or str(uuid.uuid4()), deadline=deadline)
    instance = _made(handler)
    plan = await _plan(_made(handler), input, whole)
    needed = needed_shards(len(plan.result), instance.quorum)
    shards = [ShardRun(index, shard) for index, shard in enumerate(plan.result)]
    _check_missing(missing, len(shards), needed)
    wanted = [shard for shard in shards if shard.index not in missing]
    await _run_shards(instance, wanted, whole, max_attempts, concurrency)
    if sum(shard.completed for shard in shards) < needed:
        raise next(shard.error for shard in shards if shard.error is not None)
    parts = [shard.part for shard in shards if shard.completed]
    return ShardedRun(plan, shards, await _merge(_made(handler), input, parts, whole))


async def _run_shards(
    instance: ShardedHandler, shards: Sequence[ShardRun], whole: Conditions, max_attempts: int, concurrency: int
) -> None:
    places = asyncio.Semaphore(concurrency)
    try:
        async with asyncio.TaskGroup() as group:
            for shard in shards:
                group.create_task(_attempts(instance, shard, whole, max_attempts, places))
    except BaseExceptionGroup as errors:  # no exception of a shard's, which its record has: pytest.fail() and the like
        raise errors.exceptions[0] from None


async def _attempts(
    instance: ShardedHandler, shard: ShardRun, whole: Conditions, max_attempts: int, places: asyncio.Semaphore
) -> None:
    """Run a shard until it has a part, raised NonRetryable or is out of attempts."""
    restored: Any = None
    for attempt in range(1, max_attempts + 1):
        conditions = dataclasses.replace(whole, attempt=attempt, restored=restored, raise_errors=False)
        async with places:
            run = await _shard(instance, shard.shard, shard.index, conditions)
        shard.attempts.append(run)
        restored = restored if run.checkpoint is None else run.checkpoint
        if run.error is None or isinstance(run.error, NonRetryable | ResultRefused):
            return


async def _plan(instance: ShardedHandler, input: Payload | None, conditions: Conditions) -> HandlerRun:
    value = _input(instance, input)
    return await _run(instance, instance.plan, [value], conditions, accept=lambda shards: _shards(instance, shards))


async def _shard(instance: ShardedHandler, shard: Any, index: int, conditions: Conditions) -> HandlerRun:
    text = encoded(shard, f"shard {index}", require_object=True)
    return await _run(instance, instance.run_shard, [json.loads(text)], conditions, shard_index=index)


async def _merge(
    instance: ShardedHandler, input: Payload | None, parts: Sequence[Any], conditions: Conditions
) -> HandlerRun:
    value = _input(instance, input)
    carried = [json.loads(encoded(part, f"part {index}")) for index, part in enumerate(parts)]
    return await _run(instance, instance.merge, [value, carried], conditions)


async def _run(
    instance: ShardedHandler,
    method: Callable[..., Any],
    arguments: list[Any],
    conditions: Conditions,
    *,
    shard_index: int | None = None,
    accept: Callable[[Any], Any] | None = None,
) -> HandlerRun:
    if not inspect.iscoroutinefunction(method):
        raise TypeError(f"{method.__qualname__} must be an async method")
    facts = conditions.facts(instance.kind, shard_index)
    return await run_unit(method, arguments, conditions, facts, instance.timeout, instance.progress_timeout, accept)


def _made(handler: Sharded) -> ShardedHandler:
    if isinstance(handler, ShardedHandler):
        check_sharded(type(handler))
        return handler
    check_sharded(handler)
    return handler()


def _input(instance: ShardedHandler, payload: Payload | None) -> Any:
    return decoded(payload_text(payload), input_model(instance.plan, 1), instance.kind)


def _shards(instance: ShardedHandler, value: Any) -> list[Any]:
    texts, _ = planned(value, instance.quorum)
    return [json.loads(text) for text in texts]


def _check_missing(missing: Collection[int], total: int, needed: int) -> None:
    unknown = sorted(index for index in missing if not 0 <= index < total)
    if unknown:
        raise ValueError(f"missing names the shards {unknown}; the plan has {total}")
    if total - len(set(missing)) < needed:
        raise ValueError(f"{len(set(missing))} of {total} shards are missing; the quorum needs {needed}")
