"""Handlers that do with their input what would put it into a log, were anything of it shown there."""

import asyncio
import os
import threading
from datetime import timedelta
from typing import Any

from headrace import NonRetryable, SyncTaskContext, TaskContext, handler


@handler("leaks-raising")
async def leaks_raising(ctx: TaskContext, input: dict[str, Any]) -> None:
    """Fail with the input as the error's text, and leave a task behind whose error nobody takes."""

    async def never_retrieved() -> None:
        raise KeyError(input["text"])

    left = asyncio.get_running_loop().create_task(never_retrieved(), name="left behind")
    await ctx.progress(0.5, input["text"])
    await ctx.output(input["text"])
    await ctx.checkpoint({"seen": input["text"]})
    await asyncio.wait([left])
    del left
    raise NonRetryable(input["text"], reason="LEAKY") from ValueError(input["text"])


@handler("leaks-in-thread")
def leaks_in_thread(ctx: SyncTaskContext, input: dict[str, Any]) -> object:
    """Let a thread of its own die of the input, and return what is no JSON."""
    thread = threading.Thread(target=int, args=(input["text"],), name="leaky")
    thread.start()
    thread.join()
    ctx.log.info("seen", action="leaky.seen")
    return {"result": object(), "text": input["text"]}


@handler("leaks-timing-out", timeout=timedelta(milliseconds=200))
async def leaks_timing_out(ctx: TaskContext, input: dict[str, Any]) -> None:
    """Never end, with the input at hand."""
    await ctx.progress(0.1, input["text"])
    await asyncio.Event().wait()


@handler("leaks-in-process", execution="process")
def leaks_in_process(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Die without a word, after a checkpoint."""
    ctx.checkpoint({"seen": input["text"]})
    thread = threading.Thread(target=int, args=(input["text"],), name="leaky")
    thread.start()
    thread.join()
    os._exit(3)


@handler("leaks-result")
async def leaks_result(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Return it."""
    ctx.log.info("seen", action="leaky.seen")
    return {"text": input["text"]}
