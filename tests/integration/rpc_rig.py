"""A gRPC server with a scripted producer and a scripted watch, and what a client needs to read its refusals."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from headrace.v1 import (
    event_pb2,
    producer_pb2,
    producer_pb2_grpc,
    task_pb2,
)
from headrace.v1 import (
    status_pb2 as status_service_pb2,
)
from headrace_core.errors import Draining
from headrace_core.rpc.server import GrpcServer

PRODUCER = "headrace.v1.ProducerService"
STATUS = "headrace.v1.StatusService"
SUBMIT = f"/{PRODUCER}/SubmitTask"
WATCH = f"/{STATUS}/WatchTask"

Behaviour = Callable[[producer_pb2.SubmitTaskRequest], Awaitable[producer_pb2.SubmitTaskResponse]]


async def accept(request: producer_pb2.SubmitTaskRequest) -> producer_pb2.SubmitTaskResponse:
    return producer_pb2.SubmitTaskResponse(task=task_pb2.Task(kind=request.kind), created=True)


class Producer(producer_pb2_grpc.ProducerServiceServicer):
    """Only SubmitTask, which does what the test says."""

    def __init__(self, behaviour: Behaviour = accept) -> None:
        self.behaviour = behaviour
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def SubmitTask(self, request: Any, context: Any) -> producer_pb2.SubmitTaskResponse:
        self.entered.set()
        try:
            return await self.behaviour(request)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def SubmitTasks(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def CancelTask(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


class Status:
    """Only WatchTask: one event, then it waits for the drain as the real one does."""

    def __init__(self) -> None:
        self.server: GrpcServer | None = None
        self.address = ""
        self.closed = asyncio.Event()

    async def WatchTask(self, request: Any, context: Any) -> AsyncIterator[Any]:
        assert self.server is not None
        try:
            yield status_service_pb2.WatchTaskResponse(event=event_pb2.TaskEvent(task_id=request.id, sequence=1))
            await self.server.draining.wait()
            raise Draining("resume elsewhere")
        finally:
            self.closed.set()


def add_watch(servicer: Status, server: Any) -> None:
    handler: Any = grpc.unary_stream_rpc_method_handler(
        servicer.WatchTask,
        request_deserializer=status_service_pb2.WatchTaskRequest.FromString,
        response_serializer=status_service_pb2.WatchTaskResponse.SerializeToString,
    )
    server.add_registered_method_handlers(STATUS, {"WatchTask": handler})


def watch_task(channel: grpc.aio.Channel) -> Any:
    method = channel.unary_stream(
        WATCH,
        request_serializer=status_service_pb2.WatchTaskRequest.SerializeToString,
        response_deserializer=status_service_pb2.WatchTaskResponse.FromString,
    )
    return method(status_service_pb2.WatchTaskRequest(id="t"))


@asynccontextmanager
async def serving(
    producer: Producer | None = None, status: Status | None = None, **options: Any
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    server = GrpcServer("127.0.0.1:0", name="test", **options)
    server.add(producer_pb2_grpc.add_ProducerServiceServicer_to_server, producer or Producer(), PRODUCER)
    if status:
        status.server = server
        server.add(add_watch, status, STATUS)
    address = await server.start()
    if status:
        status.address = address
    server.set_serving(True)
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield server, channel
    finally:
        await server.stop(5.0)


def producer_stub(channel: grpc.aio.Channel) -> Any:
    return producer_pb2_grpc.ProducerServiceStub(channel)


async def submit(channel: grpc.aio.Channel, kind: str = "echo", timeout: float = 10.0) -> Any:
    return await producer_stub(channel).SubmitTask(producer_pb2.SubmitTaskRequest(kind=kind), timeout=timeout)


def raw(channel: grpc.aio.Channel, path: str) -> Any:
    """A unary method that sends and receives bytes as they are."""
    return channel.unary_unary(path)


def raw_stream(channel: grpc.aio.Channel, path: str) -> Any:
    return channel.unary_stream(path)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.aio.AioRpcError, status_pb2.Status]:
    """The error of a refused call and the status in it; from_call checks that both say the same."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, f"no details: {caught.value!r}"
    return caught.value, status


def detail(status: status_pb2.Status, kind: type[Any]) -> Any:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    raise AssertionError(f"no {kind.__name__} in {status}")


def failing(error: Exception) -> Producer:
    async def fail(_request: producer_pb2.SubmitTaskRequest) -> producer_pb2.SubmitTaskResponse:
        raise error

    return Producer(fail)
