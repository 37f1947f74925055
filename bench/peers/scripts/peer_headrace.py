"""Headrace itself, through its public client. The kind `echo` gives the payload back: all of it is the result."""

import os
from typing import Any

import measuring
import psycopg
import uvloop

from headrace import Client

CALLERS = 64
KIND = "echo"
STORED = "select count(*) from headrace_core.units where state = 'COMPLETED'"


class HeadracePeer:
    packages = ("headrace", "grpcio", "protobuf", "nats-py", "psycopg", "uvloop")
    expected = measuring.PAYLOAD

    async def open(self) -> None:
        self._client = Client()
        self._connection = await psycopg.AsyncConnection.connect(os.environ["PEER_POSTGRES_URL"], autocommit=True)

    async def close(self) -> None:
        await self._connection.close()
        await self._client.close()

    async def submit(self, tasks: int) -> list[Any]:
        return await measuring.in_flight(CALLERS, tasks, self._submit_one)

    async def bulk(self, tasks: int) -> list[Any]:
        # The client sends chunks of 500.
        return [task.id for task in await self._client.submit_many([measuring.PAYLOAD] * tasks, kind=KIND)]

    async def stored(self) -> int:
        row = await (await self._connection.execute(STORED)).fetchone()
        assert row is not None
        return int(row[0])

    async def result(self, handle: Any) -> Any:
        return await self._client.result(handle, timeout=measuring.RESULT_SECONDS)

    async def _submit_one(self) -> str:
        return (await self._client.submit(KIND, measuring.PAYLOAD)).id


if __name__ == "__main__":
    measuring.main(HeadracePeer(), uvloop.new_event_loop)
