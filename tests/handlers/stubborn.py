"""Handlers that resist, stand still or take their process down. The second attempt of most of them returns."""

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from headrace import ShardedHandler, SyncTaskContext, TaskContext, handler

STALL = timedelta(milliseconds=300)
PATIENCE = timedelta(seconds=1)
RELEASE = threading.Event()
"""For tests whose consumer runs in their own process: what resists ends."""


@handler("swallows-cancellation")
async def swallows_cancellation(ctx: TaskContext, input: dict[str, Any]) -> int:
    if ctx.attempt > 1:
        return ctx.attempt
    await ctx.output("begun")
    while not RELEASE.is_set():
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            continue
    return 0


@handler("blocks-its-thread")
def blocks_its_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> int:
    if ctx.attempt == 1:
        ctx.output("begun")
        RELEASE.wait()
    return ctx.attempt


@handler("blocks-another-thread")
async def blocks_another_thread(ctx: TaskContext, input: dict[str, Any]) -> int:
    if ctx.attempt == 1:
        await ctx.output("begun")
        await asyncio.to_thread(threading.Event().wait)
    return ctx.attempt


@handler("blocks-its-process", execution="process")
def blocks_its_process(ctx: SyncTaskContext, input: dict[str, Any]) -> int:
    if ctx.attempt == 1:
        ctx.output("begun")
        time.sleep(3600)
    return ctx.attempt


@handler("blocks-its-loop")
async def blocks_its_loop(ctx: TaskContext, input: dict[str, Any]) -> int:
    if ctx.attempt == 1:
        await ctx.output("begun")
        await asyncio.sleep(input.get("after", 1.0))
        time.sleep(3600)  # noqa: ASYNC251 - that is what it is for
    return ctx.attempt


@handler("checkpoints-when-asked")
async def checkpoints_when_asked(ctx: TaskContext, input: dict[str, Any]) -> Any:
    """It goes on after its checkpoint: what is handed back there is what counts."""
    if ctx.restored is not None:
        return ctx.restored
    await ctx.output("begun")
    await ctx.cancelled.wait()  # type: ignore[attr-defined]
    await ctx.checkpoint("asked")
    await asyncio.sleep(3600)
    return None


@handler("checkpoints-and-returns")
async def checkpoints_and_returns(ctx: TaskContext, input: dict[str, Any]) -> int:
    await ctx.output("begun")
    await ctx.cancelled.wait()  # type: ignore[attr-defined]
    await ctx.checkpoint("asked")
    return ctx.attempt


@handler("stands-still", progress_timeout=STALL)
async def stands_still(ctx: TaskContext, input: dict[str, Any]) -> None:
    await ctx.progress(0.4, "loading")
    await asyncio.sleep(3600)


@handler("stands-still-thread", progress_timeout=STALL)
def stands_still_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    while not ctx.cancelled.is_set():
        time.sleep(0.02)


@handler("stands-still-process", execution="process", progress_timeout=STALL)
def stands_still_process(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    ctx.progress(0.4, "loading")
    time.sleep(3600)


@handler("stands-still-batch", batch=True, progress_timeout=STALL)
async def stands_still_batch(ctx: Any, inputs: list[dict[str, Any]]) -> list[Any]:
    await asyncio.sleep(3600)
    return []


class StandsStillInAShard(ShardedHandler):
    """One shard that reports nothing."""

    kind = "stands-still-shard"
    progress_timeout = STALL

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{}]

    async def run_shard(self, ctx: TaskContext, shard: Any) -> None:
        await asyncio.sleep(3600)

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[Any]) -> None:
        return None


@handler("moves-on", progress_timeout=PATIENCE)
async def moves_on(ctx: TaskContext, input: dict[str, Any]) -> str:
    """Each kind of report alone, for longer than its progress_timeout; it is never silent for as long."""
    reports: list[Callable[[], Awaitable[None]]] = [
        lambda: ctx.checkpoint("here"),
        lambda: ctx.progress(0.5),
        lambda: ctx.output("."),
    ]
    await ctx.output("begun")
    for report in reports:
        for _ in range(12):
            await asyncio.sleep(PATIENCE.total_seconds() / 10)
            await report()
    return "done"


@handler("kills-its-process")
async def kills_its_process(ctx: TaskContext, input: dict[str, Any]) -> None:
    await ctx.progress(0.4, "loading page 7")
    await asyncio.sleep(0.3)  # so that its neighbours are running, too
    os.kill(os.getpid(), signal.SIGKILL)


@handler("segfaults-late", execution="process")
def segfaults_late(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    ctx.progress(0.4, "loading page 7")
    ctypes.string_at(0)


@handler("neighbour")
async def neighbour(ctx: TaskContext, input: dict[str, Any]) -> int:
    """Run for a while; a later attempt, which may be alone in a process, only says which it is."""
    if ctx.attempt == 1:
        await asyncio.sleep(input.get("seconds", 3.0))
    return ctx.attempt


@handler("mixed-luck", execution="process")
def mixed_luck(ctx: SyncTaskContext, input: dict[str, Any]) -> int:
    """What each attempt does is in the payload: f raises, c crashes, i waits to be interrupted; then it returns."""
    plan = input["plan"]
    step = plan[ctx.attempt - 1] if ctx.attempt <= len(plan) else "r"
    if step == "f":
        raise ValueError("bad luck")
    if step == "c":
        os._exit(9)
    if step == "i":
        ctx.output("begun")
        time.sleep(3600)
    return ctx.attempt
