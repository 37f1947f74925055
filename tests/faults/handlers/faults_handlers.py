"""What the consumers run in a run with faults: each handler writes to the ledger what it does, and when it is done.

Payloads carry `n` (the value's seed) and `work` (seconds). Results carry the epoch and the worker of whoever wrote
them, so that they can be held against the ledger.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from headrace import NonRetryable, ShardedHandler, SyncTaskContext, TaskContext, handler
from tests.faults.recording import Ledger, worker

LEDGER = Ledger.from_environment()
QUEUE = "faults"


def done(ctx: Any, value: Any, **fields: Any) -> dict[str, Any]:
    """Note the effect, as the last thing before the return, and make the result."""
    LEDGER.note("effect", ctx, value=value, **fields)
    return {"epoch": ctx.epoch, "worker": worker(), "value": value}


def failing(ctx: Any, error: Exception) -> Exception:
    """Note that the handler raises `error`, and return it."""
    LEDGER.note("raised", ctx)
    return error


async def work(ctx: TaskContext, seconds: float, **fields: Any) -> None:
    """Take time; note a cancellation."""
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        LEDGER.note("cancelled", ctx, **fields)
        raise


@handler("faults.plain", queue=QUEUE)
async def plain(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Work, with progress and output on the way."""
    LEDGER.note("started", ctx)
    await ctx.progress(0.5, "half")
    await ctx.output("partial ")
    await work(ctx, input["work"])
    return done(ctx, input["n"] * 2)


@handler("faults.thread", queue=QUEUE)
def thread(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """The same in a thread."""
    LEDGER.note("started", ctx)
    ctx.progress(0.5, "half")
    time.sleep(input["work"])
    return done(ctx, input["n"] * 3)


@handler("faults.process", queue=QUEUE, execution="process")
def process(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """The same in a process."""
    LEDGER.note("started", ctx)
    ctx.progress(0.5, "half")
    time.sleep(input["work"])
    return done(ctx, input["n"] * 5)


@handler("faults.slow", queue=QUEUE)
async def slow(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """`steps` steps of `work` seconds, each with a checkpoint from which the next attempt goes on."""
    LEDGER.note("started", ctx)
    first = ctx.restored["step"] if ctx.restored else 0
    for step in range(first, input["steps"]):
        await work(ctx, input["work"])
        await ctx.checkpoint({"step": step + 1})
        LEDGER.note("checkpoint", ctx, data={"step": step + 1})
        await ctx.progress((step + 1) / input["steps"], f"step {step + 1}")
    return done(ctx, input["n"] + input["steps"])


@handler("faults.flaky", queue=QUEUE)
async def flaky(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Raise in the first `times` attempts."""
    LEDGER.note("started", ctx)
    await work(ctx, input["work"])
    if ctx.attempt <= input["times"]:
        raise failing(ctx, RuntimeError(f"attempt {ctx.attempt} of {input['n']} fails"))
    return done(ctx, input["n"] * 7)


@handler("faults.hopeless", queue=QUEUE)
async def hopeless(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Raise always, unless a redrive brought a payload that says `healed`."""
    LEDGER.note("started", ctx)
    await work(ctx, input["work"])
    if input.get("healed"):
        return done(ctx, input["n"] * 11)
    error = NonRetryable if input["at_once"] else RuntimeError
    raise failing(ctx, error(f"{input['n']} never works"))


@handler("faults.crash", queue=QUEUE, execution="process")
def crash(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Take the process down in the first `times` attempts, each time in another way."""
    LEDGER.note("started", ctx)
    ctx.progress(0.5, "about to crash")
    if ctx.attempt <= input["times"]:
        LEDGER.note("crashed", ctx)
        os.kill(os.getpid(), (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)[ctx.attempt % 3])
        time.sleep(60)
    return done(ctx, input["n"] * 13)


@handler("faults.batch", queue=QUEUE, batch=True)
async def batch(ctx: Any, inputs: list[dict[str, Any]]) -> list[Any]:
    """Many tasks in one call; each item says in how many attempts it fails."""
    for one in ctx.tasks:
        LEDGER.note("started", one)
    await asyncio.sleep(max(item["work"] for item in inputs))
    return [_batch_item(one, item) for one, item in zip(ctx.tasks, inputs, strict=True)]


def _batch_item(ctx: Any, item: dict[str, Any]) -> Any:
    if ctx.attempt <= item["times"]:
        return failing(ctx, RuntimeError(f"attempt {ctx.attempt} of {item['n']} fails"))
    return done(ctx, item["n"] * 17)


class Sharded(ShardedHandler):
    """`count` shards, each a square. Shard `bad` raises while its epoch is at most `until_epoch`."""

    kind = "faults.sharded"
    queue = QUEUE

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        """One shard for each number."""
        LEDGER.note("started", ctx, phase="plan")
        shards = [{**input, "i": index} for index in range(input["count"])]
        LEDGER.note("effect", ctx, phase="plan", value=len(shards))
        return shards

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> dict[str, Any]:
        """The square of its number."""
        LEDGER.note("started", ctx)
        await work(ctx, shard["work"])
        if shard["i"] == shard.get("bad") and ctx.epoch <= shard["until_epoch"]:
            raise failing(ctx, RuntimeError(f"shard {shard['i']} fails"))
        return done(ctx, (shard["n"] + shard["i"]) ** 2)

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        """The sum of the parts."""
        LEDGER.note("started", ctx, phase="merge")
        await work(ctx, input["work"], phase="merge")
        return done(ctx, sum(part["value"] for part in parts), phase="merge")


class Quorum(ShardedHandler):
    """`count` shards, of which every fifth fails for good; more than half of them suffice."""

    kind = "faults.quorum"
    queue = QUEUE
    quorum = 0.6

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        """One shard for each number."""
        LEDGER.note("started", ctx, phase="plan")
        shards = [{**input, "i": index} for index in range(input["count"])]
        LEDGER.note("effect", ctx, phase="plan", value=len(shards))
        return shards

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> dict[str, Any]:
        """Its number."""
        LEDGER.note("started", ctx)
        await work(ctx, shard["work"])
        if shard["i"] % 5 == 4:
            raise failing(ctx, NonRetryable(f"shard {shard['i']} never works"))
        return done(ctx, shard["i"])

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        """How many parts there are."""
        LEDGER.note("started", ctx, phase="merge")
        await work(ctx, input["work"], phase="merge")
        return done(ctx, len(parts), phase="merge")
