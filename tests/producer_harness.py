"""A producer on the test's own loop, with real gRPC in front and real servers behind."""

from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from headrace.v1 import dead_letter_pb2_grpc, producer_pb2, producer_pb2_grpc, queue_pb2_grpc
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.db.pool import Database
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.queues import NamespaceSettings, QueueSettings, Topology
from headrace_core.stack.logins import as_service
from headrace_core.tasks.kinds import KindRow, register_kinds
from producer.app import ProducerService
from tests.fixtures.nats_users import as_user
from tests.fixtures.waiting import eventually

SCHEMA = b'{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'
KINDS = [
    KindRow("plain", "-", None, "default", sharded=False),
    KindRow("sharded", "-", None, "default", sharded=True),
    KindRow("checked", "h1", SCHEMA, "default", sharded=False),
]
QUEUES = [
    QueueSettings(name="default"),
    QueueSettings(name="tiny", max_backlog=2),
    QueueSettings(name="brief", ack_wait=0.5),
    QueueSettings(name="choked", max_dead_letters=1),
]


@dataclass
class Harness:
    """The stubs of a running producer, and a pool of the test's own."""

    service: ProducerService
    tasks: Any
    letters: Any
    queues: Any
    db: Database
    channel: grpc.aio.Channel

    async def submit(self, **fields: Any) -> producer_pb2.SubmitTaskResponse:
        """Submit a task of kind `plain` unless said otherwise."""
        request = producer_pb2.SubmitTaskRequest(**({"kind": "plain"} | fields))
        response: producer_pb2.SubmitTaskResponse = await self.tasks.SubmitTask(request, timeout=10)
        return response


@asynccontextmanager
async def running_producer(
    database_url: str,
    nats_url: str | None = None,
    *,
    queues: Iterable[QueueSettings] = QUEUES,
    own_url: str | None = None,
    as_owner: bool = False,
    namespaces: Iterable[NamespaceSettings] = (),
    **settings: Any,
) -> AsyncIterator[Harness]:
    """A producer on `database_url`, without a broker unless `nats_url` is given; `own_url` is the test's own way.

    It connects by its own role, or `as_owner` by the one in the URL.
    """
    db = Database(own_url or database_url, max_size=4)
    await db.open()
    await register_kinds(db, KINDS)
    declared = {queue.name: queue for queue in queues}
    if nats_url is not None:
        await apply_topology(nats_url, StreamNames(), declared.values())
    service_settings = ServiceSettings(
        database_url=database_url if as_owner else as_service(database_url, "producer"),
        nats_url=as_user(nats_url or "nats://127.0.0.1:1", "producer"),
        broker="nats" if nats_url else "none",
        listen="127.0.0.1:0",
        topology=Topology(queues=declared, namespaces={one.name: one for one in namespaces}),
        **settings,
    )
    service = ProducerService(service_settings)
    try:
        await service.start()
        assert service.grpc_address is not None
        async with grpc.aio.insecure_channel(service.grpc_address) as channel:
            yield Harness(
                service,
                producer_pb2_grpc.ProducerServiceStub(channel),
                dead_letter_pb2_grpc.DeadLetterServiceStub(channel),
                queue_pb2_grpc.QueueServiceStub(channel),
                db,
                channel,
            )
            await service.drain()
    finally:
        await service.stop()
        await db.close()


@dataclass
class Refusal:
    """A failed call, unpacked."""

    code: grpc.StatusCode
    message: str
    reason: str
    fields: list[str]
    retry_after: float | None


async def refused(call: Awaitable[Message]) -> Refusal:
    """Await a call that must fail; how it did."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        metadata = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        return unpacked(error.code(), status)
    raise AssertionError(f"the call was not refused: {answer}")


def unpacked(code: grpc.StatusCode, status: Any) -> Refusal:
    """A google.rpc.Status, or a message of the same form, taken apart."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = {detail.TypeName() for detail in status.details for wanted in (info, bad, retry) if detail.Unpack(wanted)}
    delay = retry.retry_delay.ToTimedelta().total_seconds() if "google.rpc.RetryInfo" in found else None
    return Refusal(code, status.message, info.reason, [item.field for item in bad.field_violations], delay)


@asynccontextmanager
async def connected_bus(nats_url: str) -> AsyncIterator[Bus]:
    """A bus of the test's own."""
    bus = Bus(nats_url, name="test")
    await bus.connect()
    await eventually(lambda: bus.jetstream)
    try:
        yield bus
    finally:
        await bus.close()
