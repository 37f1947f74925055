"""A handler that runs until the test says so, whatever happens around it."""

import asyncio
from pathlib import Path
from typing import Any

from headrace import TaskContext, handler


@handler("held")
async def held(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Say that it has begun, and end when the file `release` exists; a minute at most."""
    await ctx.output("begun")
    for _ in range(1200):
        if Path(input["release"]).exists():
            return {"epoch": ctx.epoch}
        await asyncio.sleep(0.05)
    raise TimeoutError("never released")
