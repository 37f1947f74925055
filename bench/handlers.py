"""The kinds that the benchmarks run besides `echo`. Loaded by the consumers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace import ShardedHandler, TaskContext, handler

WAIT_SECONDS = 0.05


@handler("bench-wait")
async def wait(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Wait 50 ms, as a call to another service would."""
    await asyncio.sleep(WAIT_SECONDS)
    return input


class Shards(ShardedHandler):
    """As many trivial shards as the input says."""

    kind = "bench-shards"

    async def plan(self, ctx: TaskContext, input: dict[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002
        return [{"number": number} for number in range(int(input["shards"]))]

    async def run_shard(self, ctx: TaskContext, shard: dict[str, Any]) -> int:  # noqa: ARG002
        return int(shard["number"])

    async def merge(self, ctx: TaskContext, input: dict[str, Any], parts: Sequence[Any]) -> dict[str, Any]:  # noqa: ARG002
        return {"shards": len(parts), "sum": sum(parts)}
