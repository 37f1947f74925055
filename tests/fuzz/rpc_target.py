"""Both gRPC services on a loop of their own, what fuzzers send them, and what no answer may be."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from headrace.v1 import dead_letter_pb2, error_pb2, producer_pb2, queue_pb2
from headrace.v1 import status_pb2 as status_service_pb2
from headrace_core.settings.environment import load_settings
from headrace_core.stack.loop_thread import LoopThread
from headrace_core.tasks import queues
from headrace_core.tasks.dead_letters import record_unparseable
from headrace_core.tasks.model import Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from status.app import StatusService
from status.keda import external_scaler_pb2
from tests.factories import a_holder, claimed
from tests.producer_harness import Harness, running_producer

Code = grpc.StatusCode
CALL_SECONDS = 5.0
FIRST_ANSWER_SECONDS = 0.1
"""Of a stream: a watch that waits for an event says nothing."""
REASONS = {name.removeprefix("REASON_") for name, _ in error_pb2.Reason.items()}
WITHOUT_VIOLATIONS = {"MALFORMED_MESSAGE", "PAGE_TOKEN_INVALID", "PAYLOAD_MISMATCH"}
BY_GRPC_ITSELF = {Code.UNIMPLEMENTED}
"""Answered below our code, so without a reason."""
INSIDE = re.compile(r"Traceback|File \"|\.py\b|/[a-z_]+/[a-z_]+/|psycopg|SQLSTATE|<[a-z_.]+ object at|headrace_core")
# What the fuzzers send may be quoted in an answer.
SENT = re.compile(r"headrace_core\.units")
PRODUCER: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (producer_pb2, dead_letter_pb2, queue_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
STATUS: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (status_service_pb2, external_scaler_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


@dataclass
class Answer:
    """What a call came to; `status` is empty unless it was refused with details."""

    code: Code
    message: str = ""
    status: Any = None
    bodies: list[bytes] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """Of its ErrorInfo; empty without one."""
        info = error_details_pb2.ErrorInfo()
        return info.reason if self._unpacked(info) else ""

    @property
    def violations(self) -> int:
        """How many fields it names."""
        found = error_details_pb2.BadRequest()
        return len(found.field_violations) if self._unpacked(found) else 0

    def _unpacked(self, kind: Any) -> bool:
        return self.status is not None and any(detail.Unpack(kind) for detail in self.status.details)


class Target:
    """A producer and a status service; every method here blocks its caller's thread, not their loop."""

    def __init__(self, loop: LoopThread, producer: Harness, status: StatusService, channels: Mapping[str, Any]) -> None:
        self._loop = loop
        self._channels = channels
        self.producer = producer
        self.status = status
        self.known: tuple[str, ...] = ()

    def seed(self) -> None:
        """Tasks and dead letters anew, for requests to name; what was there before may have been redriven."""
        self.known = self._loop.run(_seeded(self.producer))

    def send(self, method: MethodDescriptor, data: bytes, metadata: tuple[tuple[str, str | bytes], ...] = ()) -> Answer:
        """Call a method with these bytes."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        side = "producer" if method.containing_service in PRODUCER else "status"
        return self.call(side, path, data, streaming=method.server_streaming, metadata=metadata)

    def call(self, side: str, path: str, data: bytes, *, streaming: bool = False, metadata: Any = ()) -> Answer:
        """Call any path."""
        work = _streamed if streaming else _unary
        return self._loop.run(work(self._channels[side], path, data, metadata))

    def run(self, work: Any) -> Any:
        """Run a coroutine on the services' loop."""
        return self._loop.run(work)

    def state(self) -> object:
        """What no refused call may change: how many rows there are of everything, and in which states."""
        return self.run(_state(self.producer))

    def page_token(self, method: str) -> str:
        """One that a method has really given."""
        source: Any = self.producer if method == "ListDeadLetters" else self._channels["status"]
        return str(self.run(_page_token(source, method)))


def check(answer: Answer, what: str) -> None:
    """Fail unless `answer` is one that a client may get."""
    assert answer.code not in (Code.INTERNAL, Code.UNKNOWN), f"{what}: {answer.code} {answer.message}"
    assert answer.code not in (Code.DEADLINE_EXCEEDED, Code.DATA_LOSS), f"{what}: {answer.code}"
    said = SENT.sub("", answer.message)
    assert not INSIDE.search(said), f"{what} shows the inside: {answer.message}"
    if answer.code is Code.OK or answer.code in BY_GRPC_ITSELF or "grpc.health" in what:
        return
    assert answer.reason in REASONS - {"UNSPECIFIED"}, f"{what}: {answer.code} {answer.message} has no reason"
    if answer.code is Code.INVALID_ARGUMENT and answer.reason not in WITHOUT_VIOLATIONS:
        assert answer.violations, f"{what}: {answer.message} names no field"


@contextmanager
def serving(database_url: str) -> Iterator[Target]:
    """The services, with a queue, tasks, dead letters and page tokens for requests to mean."""
    loop = LoopThread("fuzzed-services")
    stack = AsyncExitStack()
    said = _Complaints()
    logging.getLogger().addHandler(said)
    try:
        target = loop.run(_started(loop, stack, database_url))
        target.seed()
        yield target
        assert not said.lines, f"libraries complained: {said.lines[:3]}"
    finally:
        logging.getLogger().removeHandler(said)
        loop.run(stack.aclose())
        loop.close()


class _Complaints(logging.Handler):
    """What libraries say at error level: a server that swallows an exception says it there and nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


async def _started(loop: LoopThread, stack: AsyncExitStack, database_url: str) -> Target:
    producer = await stack.enter_async_context(running_producer(database_url))
    environ = {"HEADRACE_DATABASE_URL": database_url, "HEADRACE_HTTP_LISTEN": "127.0.0.1:0", "HEADRACE_BROKER": "none"}
    status = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/")))
    stack.push_async_callback(status.stop)
    await status.start()
    assert status.grpc_address is not None
    watching = await stack.enter_async_context(grpc.aio.insecure_channel(status.grpc_address))
    stack.push_async_callback(status.drain)
    return Target(loop, producer, status, {"producer": producer.channel, "status": watching})


async def _seeded(producer: Harness) -> tuple[str, ...]:
    await queues.resume(producer.db, "default")  # what was tried before may have paused it
    ids = [(await producer.submit(labels={"team": "a"})).task.id for _ in range(4)]
    for task_id in ids[:2]:
        unit = await claimed(producer.db, a_holder(), UUID(task_id))
        error = error_json("NON_RETRYABLE", "ValueError", "boom")
        await settle(producer.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)])
    await record_unparseable(producer.db, "17-4", "default", b"\xff\x00", "it is none")
    await producer.submit(idempotency_key="k1")
    names = ("default", "tiny", "brief", "plain", "checked", "sharded", "team", "k1", "queues", "target", "metric")
    return (*ids, f"{ids[0]}-1", "17-4", str(uuid4()), "headrace-work", "work", "64", *names)


async def _unary(channel: Any, path: str, data: bytes, metadata: Any) -> Answer:
    try:
        answer = await channel.unary_unary(path)(bytes(data), timeout=CALL_SECONDS, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return _refused(error)
    return Answer(Code.OK, bodies=[answer])


async def _streamed(channel: Any, path: str, data: bytes, metadata: Any) -> Answer:
    """The first answer of a stream, or its end; then it is cancelled."""
    call = channel.unary_stream(path)(bytes(data), timeout=CALL_SECONDS, metadata=metadata)
    try:
        async with asyncio.timeout(FIRST_ANSWER_SECONDS):
            answer = await call.read()
    except TimeoutError:
        return Answer(Code.OK)
    except grpc.aio.AioRpcError as error:
        return _refused(error)
    finally:
        call.cancel()
    return Answer(Code.OK, bodies=[] if answer is grpc.aio.EOF else [answer])


def _refused(error: grpc.aio.AioRpcError) -> Answer:
    return Answer(error.code(), error.details() or "", rpc_status.from_call(error) or status_pb2.Status())


async def _state(producer: Harness) -> object:
    return await producer.db.fetch(
        """select (select count(*) from headrace_core.units) as units,
                (select sum(generation) from headrace_core.units) as generations,
                (select count(*) from headrace_core.units where state = 'CANCELLED') as cancelled,
                (select count(*) from headrace_core.dead_letters) as letters,
                (select count(*) from headrace_core.dead_letters where resolved_at is null) as open_letters,
                (select count(*) from headrace_core.queues) as queues,
                (select count(*) from headrace_core.queues where paused_at is not null) as paused"""
    )


async def _page_token(source: Any, method: str) -> str:
    if method == "ListDeadLetters":
        request = dead_letter_pb2.ListDeadLettersRequest(page_size=1)
        return str((await source.letters.ListDeadLetters(request, timeout=10)).next_page_token)
    data = status_service_pb2.ListTasksRequest(page_size=1).SerializeToString()
    answer = await source.unary_unary("/headrace.v1.StatusService/ListTasks")(data, timeout=10)
    return status_service_pb2.ListTasksResponse.FromString(answer).next_page_token
