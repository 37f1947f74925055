"""A client of the SDK that has one task at a time: submit, watch, wait for the end."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

from bench.gate import Gate, run
from bench.payloads import payload
from headrace import Client
from headrace.v1 import task_pb2
from headrace.watch import is_terminal

TASK_SECONDS = 30.0


async def one(client: Client, number: int) -> tuple[float, float]:
    """Seconds until the submit was answered, and until the watch showed the task COMPLETED."""
    started = time.perf_counter()
    task = await client.submit("echo", {"text": payload(number).decode()})
    answered = time.perf_counter()
    async with aclosing(client.watch(task.id)) as events:
        async for event in events:
            if is_terminal(event):
                state = event.snapshot.state if event.HasField("snapshot") else event.state_change.state
                if state != task_pb2.TASK_STATE_COMPLETED:
                    raise RuntimeError(f"task {task.id} ended as {task_pb2.TaskState.Name(state)}")
                break
    return answered - started, time.perf_counter() - started


async def load(gate: Gate, *, producer: str, status: str, tasks: int, warm_up: int) -> dict[str, Any]:
    """Do `warm_up` tasks, then, at the word, `tasks`."""
    async with Client(producer, status) as client:
        for number in range(warm_up):
            await asyncio.wait_for(one(client, number), TASK_SECONDS)
        await gate.opened()
        seen = [await asyncio.wait_for(one(client, number), TASK_SECONDS) for number in range(tasks)]
    return {"submit": [submitted for submitted, _ in seen], "end": [ended for _, ended in seen]}


if __name__ == "__main__":
    run(load)
