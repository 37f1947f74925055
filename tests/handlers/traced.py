"""Handlers that make spans and lines of their own, as an application with OpenTelemetry would."""

import asyncio
import os
from datetime import timedelta
from typing import Any

from opentelemetry import trace

from headrace import NonRetryable, RetryAfter, ShardedHandler, SyncTaskContext, TaskContext, handler


def work(name: str) -> str:
    """A span of the handler's own; the trace id that it belongs to."""
    with trace.get_tracer("application").start_as_current_span(name) as span:
        return f"{span.get_span_context().trace_id:032x}"


@handler("on-loop")
async def on_loop(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    ctx.log.info("at work", action="test.work")
    return {"trace": work("work on loop"), "deep": await asyncio.to_thread(work, "work in to_thread")}


@handler("in-thread")
def in_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    ctx.log.info("at work", action="test.work")
    return {"trace": work("work in thread")}


@handler("in-process", execution="process")
def in_process(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    ctx.log.info("at work", action="test.work")
    return {"trace": work("work in process"), "pid": os.getpid()}


@handler("in-batch", queue="batches", batch=True)
async def in_batch(ctx: TaskContext, inputs: list[dict[str, Any]]) -> list[Any]:
    work("work in batch")
    return [ValueError(f"bad {item['secret']}") if item.get("bad") else {"n": item["n"]} for item in inputs]


@handler("fails-on-secret")
async def fails_on_secret(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    if input.get("fails", True):
        raise NonRetryable(f"cannot work with {input['secret']}")
    return {"secret": input["secret"]}


class Flaky(ShardedHandler):
    """Two shards; the second fails at its first attempt, with the shard in its message."""

    kind = "flaky-shards"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": n, "secret": input["secret"]} for n in range(2)]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> int:
        if shard["n"] == 1 and ctx.attempt == 1:
            raise RetryAfter(f"not yet: {shard}", timedelta(seconds=0.1))
        work("work in shard")
        return int(shard["n"])

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[int]) -> dict[str, Any]:
        return {"parts": parts, "secret": input["secret"]}
