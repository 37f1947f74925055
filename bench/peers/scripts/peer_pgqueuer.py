"""pgqueuer: everything in Postgres, through asyncpg. It keeps how a job ended, no return value."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import measuring
import pgqueuer
import uvloop
from pgqueuer.core.completion import CompletionWatcher
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

URL = os.environ["PEER_POSTGRES_URL"]
CONNECTIONS = 10
ENTRYPOINT = "no_op"


@asynccontextmanager
async def worker() -> AsyncIterator[pgqueuer.PgQueuer]:
    connection = await asyncpg.connect(URL)
    queue = pgqueuer.PgQueuer(AsyncpgDriver(connection))

    @queue.entrypoint(ENTRYPOINT)
    async def no_op(job: Job) -> None:
        assert job.payload is not None
        json.loads(job.payload)

    try:
        yield queue
    finally:
        await connection.close()


class PgQueuerPeer:
    packages = ("pgqueuer", "asyncpg", "uvloop")
    expected = "successful"

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(URL, min_size=CONNECTIONS, max_size=CONNECTIONS)
        self._queries = Queries(AsyncpgPoolDriver(self._pool))
        if not await self._queries.has_table("pgqueuer"):
            await self._queries.install()
        self._listening = await asyncpg.connect(URL)
        driver = AsyncpgDriver(self._listening)
        self._watcher = CompletionWatcher(driver, queries=Queries(driver), debounce=timedelta(milliseconds=1))
        await self._watcher.__aenter__()

    async def close(self) -> None:
        await self._watcher.__aexit__(None, None, None)
        await self._listening.close()
        await self._pool.close()

    async def submit(self, tasks: int) -> list[Any]:
        return await measuring.in_flight(CONNECTIONS, tasks, self._submit_one)

    async def bulk(self, tasks: int) -> list[Any]:
        ids: list[Any] = []
        for size in measuring.chunks(tasks):
            bodies: list[bytes | None] = [_body() for _ in range(size)]
            ids += await self._queries.enqueue([ENTRYPOINT] * size, bodies, [0] * size)
        return ids

    async def stored(self) -> int:
        statement = "select count(*) from pgqueuer_log where status = 'successful'"
        return int(await self._pool.fetchval(statement))

    async def result(self, handle: Any) -> Any:
        return await self._watcher.wait_for(handle)

    async def _submit_one(self) -> Any:
        (job_id,) = await self._queries.enqueue(ENTRYPOINT, _body())
        return job_id


def _body() -> bytes:
    return json.dumps(measuring.PAYLOAD).encode()  # each task anew, as a caller would


if __name__ == "__main__":
    if sys.argv[1] == "work":
        # What `pgq run` calls; that command itself does not start with the typer that it is installed with.
        uvloop.run(pgqueuer.run(worker, batch_size=int(os.environ["PEER_BATCH"])))
    else:
        measuring.main(PgQueuerPeer(), uvloop.new_event_loop)
