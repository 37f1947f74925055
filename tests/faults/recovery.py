"""After the faults: does the system say that it is well again, by the normal way, and is that true."""

from __future__ import annotations

import asyncio
import json

from headrace import errors
from headrace.v1 import status_pb2
from tests.faults.workload.clients import FaultsClient
from tests.faults.workload.intentions import LABELS, Intention, wanted

PAUSE = 0.5


async def recovered(client: FaultsClient, within: float) -> list[str]:
    """Wait until the system says that it is well and in broker mode (promise G7), then run a task; say what fails."""
    said = "nothing"
    try:
        async with asyncio.timeout(within):
            while (said := await _complaint(client)) != "":  # noqa: ASYNC110 - another process can only be asked
                await asyncio.sleep(PAUSE)
            said = "a task that was submitted then did not end"
            await _run_one(client)
    except TimeoutError:
        return [f"not well {within:.0f} s after everything had ended: {said}"]
    return []


async def _complaint(client: FaultsClient) -> str:
    """What the system says is wrong; empty when all is well."""
    try:
        status = await client.sdk.system_status()
    except errors.HeadraceError as error:
        return f"the status service does not answer: {error.message}"
    if status.mode == status_pb2.DISPATCH_MODE_BROKER and status.health == status_pb2.HEALTH_STATE_HEALTHY:
        return ""
    mode = status_pb2.DispatchMode.Name(status.mode)
    health = status_pb2.HealthState.Name(status.health)
    return f"{mode}, {health}, problems: {json.dumps(list(status.problems), ensure_ascii=False)}"


async def _run_one(client: FaultsClient) -> None:
    """Submit a task and watch it to its end."""
    task = Intention("afterwards", "faults.plain", {"n": 21, "work": 0.1}, wanted(["COMPLETED"], 42, failures=0))
    request = client.sdk.request(task.kind, task.payload, idempotency_key=task.key, labels=LABELS)
    while (task_id := await client.submit(task, request)) is None:  # noqa: ASYNC110
        await asyncio.sleep(PAUSE)
    await client.watch(task_id)
