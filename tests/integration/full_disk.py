"""What a producer says while the disk of Postgres is full. Run by its test in a mount namespace with a small disk.

Prints what it found as one line of JSON; the test judges it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import psycopg

from headrace.v1 import producer_pb2
from headrace_core.db import pool
from headrace_core.db.migrate import migrate
from headrace_core.stack.logs import StackLog
from headrace_core.stack.postgres import Postgres
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, refused, running_producer

PAYLOAD = json.dumps({"text": "x" * 500_000}).encode()


async def examine(folder: Path) -> dict[str, Any]:
    """Fill the disk, submit, make room, submit."""
    pool.SHORTAGE_SECONDS = 3.0  # a test does not wait as long as a load balancer
    log = StackLog(folder / "postgres.log")
    postgres = Postgres(folder / "postgres", log)
    await postgres.start()
    try:
        url = await postgres.create_database("headrace")
        await migrate(url)
        async with running_producer(url) as producer:
            return await _fill_and_empty(producer, url, folder)
    finally:
        await postgres.stop()
        log.close()


async def _fill_and_empty(producer: Harness, url: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"before": producer.service.problems()}
    # A file of somebody else fills the disk but for what a checkpoint needs.
    filler = folder / "filler"
    await asyncio.to_thread(_fill, filler)
    refusal = await refused(_until_refused(producer))
    found["refused"] = {
        "code": refusal.code.name,
        "reason": refusal.reason,
        "retry": refusal.retry_after is not None,
    }
    found["said"] = producer.service._db.shortage
    found["problems"] = producer.service.problems()
    filler.unlink()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("checkpoint")
    await eventually(lambda: _submit(producer, 10_000), within=20, ignoring=(grpc.aio.AioRpcError,))
    found["accepted_afterwards"] = True
    await eventually(lambda: not producer.service.problems(), within=10)
    found["problems_afterwards"] = producer.service.problems()
    return found


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 65536)
        except OSError:
            return


async def _submit(producer: Harness, number: int) -> Any:
    request = producer_pb2.SubmitTaskRequest(kind="plain", idempotency_key=f"k{number}", payload_json=PAYLOAD)
    return await producer.tasks.SubmitTask(request, timeout=10)


async def _until_refused(producer: Harness) -> Any:
    answer = None
    for number in range(300):
        answer = await _submit(producer, number)
    return answer


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(examine(Path(sys.argv[1])))) + "\n")
