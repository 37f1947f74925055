"""Two unary handlers on the server of the product: one answers a constant, one commits a row for each call first."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from bench.gate import Gate, run, say
from bench.references.bare import TABLE
from headrace.v1 import producer_pb2, producer_pb2_grpc, task_pb2
from headrace_core.rpc.server import GrpcServer

Context = grpc.aio.ServicerContext[Any, Any]
# As many as a producer has.
CONNECTIONS = 12
INSERT = b"insert into bare (id, payload) values (%b, %b::text::json)"
ANSWER = producer_pb2.SubmitTaskResponse(
    task=task_pb2.Task(id=str(uuid.UUID(int=1)), namespace="default", kind="echo", queue="default", sequence=1),
    created=True,
)


class Trivial:
    """Answers a constant: what a unary call costs here at least."""

    async def SubmitTask(  # noqa: N802
        self,
        request: producer_pb2.SubmitTaskRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> producer_pb2.SubmitTaskResponse:
        return ANSWER

    async def SubmitTasks(self, request: object, context: Context) -> None:  # noqa: N802
        """Not called here; the generated registration wants to see it."""
        raise NotImplementedError

    CancelTask = SubmitTasks


class CommitPerCall(Trivial):
    """Inserts the payload in a durable transaction of its own, from a pool, then answers."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[Any]]) -> None:
        self._pool = pool

    async def SubmitTask(  # noqa: N802
        self,
        request: producer_pb2.SubmitTaskRequest,
        context: Context,  # noqa: ARG002
    ) -> producer_pb2.SubmitTaskResponse:
        async with self._pool.connection() as connection:
            await connection.execute(INSERT, (uuid.uuid4(), request.payload_json.decode()))
        return ANSWER


async def load(gate: Gate, *, database_url: str) -> dict[str, Any]:
    """Serve until the word; the address is told first. An empty `database_url`: the trivial handler."""
    server = GrpcServer("127.0.0.1:0", name="bench")
    if not database_url:
        await _serve(server, Trivial(), gate)
        return {}
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(TABLE.encode())
    options = "-c synchronous_commit=on -c jit=off"
    settings = {"autocommit": True, "prepare_threshold": 0, "options": options}
    async with AsyncConnectionPool(database_url, kwargs=settings, min_size=CONNECTIONS, open=False) as pool:
        await pool.wait()
        await _serve(server, CommitPerCall(pool), gate)
    return {}


async def _serve(server: GrpcServer, servicer: Trivial, gate: Gate) -> None:
    server.add(producer_pb2_grpc.add_ProducerServiceServicer_to_server, servicer, "headrace.v1.ProducerService")
    say({"address": await server.start()})
    server.set_serving(True)
    await gate.opened()
    await asyncio.wait_for(server.stop(1.0), 5.0)


if __name__ == "__main__":
    run(load)
