"""Handlers for the proof of the long queue: what fills it, and what must not wait behind it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from headrace import RetryAfter, ShardedHandler, TaskContext, handler


@handler("queue-nap")
async def nap(ctx: TaskContext, input: dict[str, Any]) -> None:
    """Fill a slot for a second."""
    await asyncio.sleep(1.0)


@handler("queue-quick")
async def quick(ctx: TaskContext, input: dict[str, Any]) -> None:
    """Nothing."""


@handler("queue-holds")
async def holds(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Wait to be interrupted, once."""
    if ctx.restored is None:
        await ctx.checkpoint({"held": True})
        await asyncio.Event().wait()
    return {"attempt": ctx.attempt}


@handler("queue-retries")
async def retries(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Fail once, and be due again after some seconds."""
    if ctx.attempt == 1:
        raise RetryAfter("once more", timedelta(seconds=input["seconds"]))
    return {"attempt": ctx.attempt}


class Stages(ShardedHandler):
    """Three stages, each of which must find a slot: a plan, three shards, a merge."""

    kind = "queue-stages"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": n} for n in range(3)]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> int:
        return int(shard["n"])

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: list[int]) -> int:
        return sum(parts)
