"""procrastinate: everything in Postgres, through psycopg. It keeps how a job ended, no return value."""

import asyncio
import os
from typing import Any

import measuring
import procrastinate
import psycopg
import uvloop

URL = os.environ["PEER_POSTGRES_URL"]
CONNECTIONS = 10
WAITING = ("todo", "doing")

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=URL, min_size=CONNECTIONS, max_size=CONNECTIONS)
)


@app.task(name="no_op", queue="peers")
async def no_op(payload: dict[str, Any]) -> None:
    pass


class ProcrastinatePeer:
    packages = ("procrastinate", "psycopg", "uvloop")
    expected = "succeeded"

    async def open(self) -> None:
        self._connection = await psycopg.AsyncConnection.connect(URL, autocommit=True)
        await app.open_async()
        if await self._number("select count(*) from pg_class where relname = 'procrastinate_jobs'") == 0:
            await app.schema_manager.apply_schema_async()

    async def close(self) -> None:
        await app.close_async()
        await self._connection.close()

    async def submit(self, tasks: int) -> list[Any]:
        return await measuring.in_flight(CONNECTIONS, tasks, lambda: no_op.defer_async(payload=measuring.PAYLOAD))

    async def bulk(self, tasks: int) -> list[Any]:
        ids: list[Any] = []
        for size in measuring.chunks(tasks):
            ids += await no_op.batch_defer_async(*[{"payload": measuring.PAYLOAD}] * size)
        return ids

    async def stored(self) -> int:
        return await self._number("select count(*) from procrastinate_jobs where status = 'succeeded'")

    async def result(self, handle: Any) -> Any:
        """It has no wait of its own, so its status is asked for."""
        while (status := await app.job_manager.get_job_status_async(handle)).value in WAITING:  # noqa: ASYNC110
            await asyncio.sleep(measuring.RESULT_POLL_SECONDS)
        return status.value

    async def _number(self, statement: str) -> int:
        row = await (await self._connection.execute(statement)).fetchone()
        assert row is not None
        return int(row[0])


if __name__ == "__main__":
    measuring.main(ProcrastinatePeer(), uvloop.new_event_loop)
