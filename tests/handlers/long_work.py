"""Work of many seconds that keeps a checkpoint, and notes in a ledger from where to where each attempt came."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from headrace import TaskContext, handler

STEP_SECONDS = 0.1
STEPS_PER_CHECKPOINT = 10


@handler("long-work", timeout=timedelta(minutes=10))
async def long_work(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:
    """Work for `seconds`, in steps; a checkpoint each second, and one more when asked to end."""
    done, told = int(ctx.restored or 0), False
    _note(input["ledger"], f"{ctx.task_id} {ctx.attempt} from {done}")
    try:
        while done < input["seconds"] / STEP_SECONDS:
            await asyncio.sleep(STEP_SECONDS)
            done += 1
            asked = ctx.cancelled.is_set() and not told
            if asked or done % STEPS_PER_CHECKPOINT == 0:
                told = told or asked
                await ctx.checkpoint(done)
    finally:
        _note(input["ledger"], f"{ctx.task_id} {ctx.attempt} to {done}")
    return {"steps": done}


def _note(ledger: str, line: str) -> None:
    """Whole lines: O_APPEND writes of this size do not mix."""
    with Path(ledger).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
