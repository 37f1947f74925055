"""Handlers of every kind and mood, for the tests of the consumer."""

import asyncio
import ctypes
import os
import threading
import time
from datetime import timedelta
from typing import Any

import pydantic

from headrace import NonRetryable, RetryAfter, ShardedHandler, SyncTaskContext, TaskContext, handler


class Number(pydantic.BaseModel):
    n: int


@handler("double")
async def double(ctx: TaskContext, input: Number) -> dict[str, int]:
    return {"doubled": input.n * 2, "attempt": ctx.attempt}


@handler("talk")
async def talk(ctx: TaskContext, input: dict[str, Any]) -> str:
    for index in range(input["times"]):
        await ctx.progress((index + 1) / input["times"], f"step {index}")
        await ctx.output(f"word {index};")
    return "said"


@handler("plain-thread")
def plain_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    ctx.progress(0.5, "half")
    ctx.output("out")
    ctx.checkpoint({"seen": True})
    return {"thread": threading.current_thread().name, "n": input.get("n")}


@handler("plain-process", execution="process")
def plain_process(ctx: SyncTaskContext, input: Number) -> dict[str, Any]:
    ctx.progress(0.5, "half")
    ctx.output("from a process")
    ctx.checkpoint({"n": input.n})
    return {"pid": os.getpid(), "n": input.n}


@handler("fails-twice")
async def fails_twice(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    seen = ctx.restored or 0
    await ctx.checkpoint(seen + 1)
    if seen < 2:
        raise ValueError(f"not yet, attempt {ctx.attempt}")
    return {"attempt": ctx.attempt, "seen": seen}


@handler("always-fails")
async def always_fails(ctx: TaskContext, input: dict[str, Any]) -> None:
    raise ValueError(f"attempt {ctx.attempt} failed")


@handler("non-retryable")
async def non_retryable(ctx: TaskContext, input: dict[str, Any]) -> None:
    raise NonRetryable("this will never work", reason="BAD_DOCUMENT")


@handler("retry-after")
async def retry_after(ctx: TaskContext, input: dict[str, Any]) -> int:
    if ctx.attempt == 1:
        raise RetryAfter("too many requests", timedelta(seconds=input["seconds"]))
    return ctx.attempt


@handler("slow", timeout=timedelta(milliseconds=200))
async def slow(ctx: TaskContext, input: dict[str, Any]) -> None:
    await asyncio.sleep(60)


@handler("slow-thread", timeout=timedelta(milliseconds=100))
def slow_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    while not ctx.cancelled.is_set():
        time.sleep(0.01)


@handler("slow-process", execution="process", timeout=timedelta(seconds=1))
def slow_process(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    while True:
        time.sleep(10)  # does not look at ctx.cancelled


@handler("segfault", execution="process")
def segfault(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    ctypes.string_at(0)


@handler("exits", execution="process")
def exits(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    os._exit(3)


@handler("waits")
async def waits(ctx: TaskContext, input: dict[str, Any]) -> str:
    """Say that it has begun, then wait for its end."""
    await ctx.output("begun")
    await asyncio.Event().wait()
    return "never"


@handler("finishes-when-asked")
async def finishes_when_asked(ctx: TaskContext, input: dict[str, Any]) -> str:
    await ctx.output("begun")
    await ctx.cancelled.wait()  # type: ignore[attr-defined]
    return "finished in time"


@handler("resumes")
async def resumes(ctx: TaskContext, input: dict[str, Any]) -> Any:
    """Keep a checkpoint and wait; the next attempt returns what it was given."""
    if ctx.restored is not None:
        return {"restored": ctx.restored, "attempt": ctx.attempt}
    await ctx.checkpoint({"page": 7})
    await ctx.output("begun")
    await asyncio.Event().wait()
    return None


@handler("blocks-the-loop")
async def blocks_the_loop(ctx: TaskContext, input: dict[str, Any]) -> str:
    time.sleep(input["seconds"])  # noqa: ASYNC251 - that is what it is for
    return "done"


@handler("not-json")
async def not_json(ctx: TaskContext, input: dict[str, Any]) -> Any:
    return {"value": float("nan")} if input.get("nan") else object()


@handler("batch-double", batch=True)
async def batch_double(ctx: Any, inputs: list[Number]) -> list[Any]:
    """Each answer names the size of its batch; 13 fails alone."""
    return [
        ValueError("unlucky") if item.n == 13 else {"doubled": item.n * 2, "of": len(inputs), "ids": len(ctx.tasks)}
        for item in inputs
    ]


@handler("batch-wrong", batch=True)
async def batch_wrong(ctx: Any, inputs: list[dict[str, Any]]) -> list[Any]:
    return []


@handler("batch-thread", batch=True)
def batch_thread(ctx: Any, inputs: list[Number]) -> list[Any]:
    return [{"n": item.n, "of": len(inputs)} for item in inputs]


class Words(ShardedHandler):
    kind = "count-words"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"text": text} for text in input["texts"]]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> int:
        if shard["text"] == "bad":
            raise NonRetryable("a bad text")
        if shard["text"] == "flaky" and ctx.attempt == 1:
            raise ValueError("flaky")
        return len(shard["text"].split())

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[int]) -> dict[str, Any]:
        return {"total": sum(parts), "parts": parts, "asked": len(input["texts"])}


class Tolerant(Words):
    kind = "count-words-tolerant"
    quorum = 0.5


@handler("stuck-thread", timeout=timedelta(milliseconds=100))
def stuck_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    threading.Event().wait()  # ignores ctx.cancelled


RUNNING = {"now": 0, "most": 0}


@handler("counts-itself")
async def counts_itself(ctx: TaskContext, input: dict[str, Any]) -> int:
    RUNNING["now"] += 1
    RUNNING["most"] = max(RUNNING["most"], RUNNING["now"])
    await asyncio.sleep(0.02)
    RUNNING["now"] -= 1
    return RUNNING["most"]


@handler("where")
async def where(ctx: TaskContext, input: dict[str, Any]) -> int:
    await ctx.checkpoint("here")
    await ctx.output("asked")
    return os.getpid()
