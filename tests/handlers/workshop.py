"""Handlers as a user would write them, each noting its starts in a ledger file that the payload names."""

import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydantic

from headrace import NonRetryable, ShardedHandler, SyncTaskContext, TaskContext, handler


def note(ledger: str, line: str) -> None:
    """Append a line at once and whole: O_APPEND writes of this size do not mix."""
    with Path(ledger).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


class Addition(pydantic.BaseModel):
    """The input of `add`."""

    a: int
    b: int


class Sum(pydantic.BaseModel):
    """The result of `add`."""

    sum: int


@handler("add")
async def add(ctx: TaskContext, input: Addition) -> Sum:
    await ctx.progress(0.5, "adding")
    return Sum(sum=input.a + input.b)


@handler("plain")
def plain(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    ctx.progress(0.5, "half")
    ctx.output("partial ")
    ctx.output("output")
    return {"doubled": input["n"] * 2, "attempt": ctx.attempt}


@handler("process", execution="process")
def process(ctx: SyncTaskContext, input: dict[str, Any]) -> dict[str, Any]:
    ctx.progress(0.5, "half")
    return {"pid": os.getpid(), "n": input["n"]}


@handler("crashes", execution="process")
def crashes(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    note(input["ledger"], "start")
    os.abort()


@handler("third-time")
async def third_time(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    note(input["ledger"], f"attempt {ctx.attempt}")
    if ctx.attempt < 3:
        raise RuntimeError(f"attempt {ctx.attempt} fails")
    return {"attempt": ctx.attempt}


@handler("always-fails")
async def always_fails(ctx: TaskContext, input: dict[str, Any]) -> None:
    note(input["ledger"], f"attempt {ctx.attempt}")
    raise ValueError("it never works")


@handler("hopeless")
async def hopeless(ctx: TaskContext, input: dict[str, Any]) -> None:
    note(input["ledger"], "start")
    raise NonRetryable("there is no point in trying again")


@handler("too-slow", timeout=timedelta(seconds=0.3))
async def too_slow(ctx: TaskContext, input: dict[str, Any]) -> None:
    note(input["ledger"], "start")
    await asyncio.sleep(60)


@handler("too-slow-process", execution="process", timeout=timedelta(seconds=1))
def too_slow_process(ctx: SyncTaskContext, input: dict[str, Any]) -> None:
    note(input["ledger"], "start")
    time.sleep(60)


@handler("waits")
async def waits(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Run until the file `release` exists; a minute at most."""
    note(input["ledger"], f"start {ctx.epoch}")
    for _ in range(600):
        if Path(input["release"]).exists():
            return {"epoch": ctx.epoch}
        await asyncio.sleep(0.1)
    raise TimeoutError("never released")


@handler("counts")
async def counts(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Report `steps` steps with output, for watchers."""
    for step in range(input["steps"]):
        await ctx.progress((step + 1) / input["steps"], f"step {step + 1}")
        await ctx.output(f"{step};")
        await asyncio.sleep(input.get("pause", 0))
    return {"steps": input["steps"]}


@handler("measure", queue="batches", batch=True)
async def measure(ctx: TaskContext, inputs: list[dict[str, Any]]) -> list[Any]:
    note(inputs[0]["ledger"], f"call {len(inputs)}")
    return [ValueError("bad item") if item.get("bad") else {"n": item["n"]} for item in inputs]


class Squares(ShardedHandler):
    """Squares of 0 … count - 1, one a shard. The shards in `held`, and the merge if `merge_held`, await `release`."""

    kind = "squares"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": n, **{key: input[key] for key in input if key != "count"}} for n in range(input["count"])]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> int:
        if "ledger" in shard:
            note(shard["ledger"], f"shard {ctx.shard_index}")
        held = shard.get("held", [])
        for _ in range(600):
            if shard["n"] not in held or Path(shard["release"]).exists():
                break
            await asyncio.sleep(0.1)
        return int(shard["n"]) ** 2

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[int]) -> dict[str, Any]:
        if "ledger" in input:
            note(input["ledger"], "merge")
        for _ in range(600):
            if not input.get("merge_held") or Path(input["release"]).exists():
                break
            await asyncio.sleep(0.1)
        return {"sum": sum(parts), "parts": len(parts)}


class MostlyGood(ShardedHandler):
    """Two of three shards suffice; shard 1 always fails."""

    kind = "mostly-good"
    quorum = 0.66

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": n} for n in range(3)]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> int:
        if shard["n"] == 1:
            raise NonRetryable("shard 1 is bad")
        return int(shard["n"])

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[int]) -> dict[str, Any]:
        return {"parts": parts}
