"""A real gRPC server whose answers a test writes down beforehand: the client's side of the protocol, on a socket."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from headrace.v1 import (
    dead_letter_pb2,
    event_pb2,
    producer_pb2,
    queue_pb2,
    task_pb2,
)
from headrace.v1 import status_pb2 as reads_pb2

TASK = "019ab000-0000-7000-8000-000000000001"


def refusal(
    code: grpc.StatusCode,
    reason: str = "",
    message: str = "refused",
    *,
    violations: dict[str, str] | None = None,
    retry_after: float | None = None,
) -> status_pb2.Status:
    """A status with the details that the services attach."""
    status = status_pb2.Status(code=code.value[0], message=message)
    details: list[Any] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="headrace"))
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=what)
            for name, what in violations.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry_after is not None:
        delay = duration_pb2.Duration(nanos=int(retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], status: status_pb2.Status) -> None:
    """End the call with `status`."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))


def state(
    sequence: int, value: "task_pb2.TaskState.ValueType", *, terminal: bool = False, task: str = TASK
) -> event_pb2.TaskEvent:
    """A change of the task's state."""
    unit = task_pb2.Unit(type=task_pb2.UNIT_TYPE_TASK)
    event = event_pb2.TaskEvent(task_id=task, sequence=sequence, generation=1, unit=unit)
    event.state_change.state = value
    event.state_change.terminal = terminal
    return event


def snapshot(sequence: int, value: "task_pb2.TaskState.ValueType", task: str = TASK) -> event_pb2.TaskEvent:
    """The task as it is."""
    event = event_pb2.TaskEvent(task_id=task, sequence=sequence, generation=1)
    event.snapshot.id = task
    event.snapshot.sequence = sequence
    event.snapshot.state = value
    return event


def progress(sequence: int, fraction: float, task: str = TASK) -> event_pb2.TaskEvent:
    """A report of progress."""
    event = event_pb2.TaskEvent(task_id=task, sequence=sequence, generation=1)
    event.progress.progress.fraction = fraction
    return event


def gap(sequence: int, after: int) -> event_pb2.TaskEvent:
    """Events up to `sequence` are missing."""
    event = event_pb2.TaskEvent(task_id=TASK, sequence=sequence)
    event.gap.after_sequence = after
    event.gap.cause = "retention"
    return event


def heartbeat() -> event_pb2.TaskEvent:
    """A sign of life."""
    event = event_pb2.TaskEvent()
    event.heartbeat.SetInParent()
    return event


def life() -> list[event_pb2.TaskEvent]:
    """Everything that happens to a task, sequences 1 to 6."""
    return [
        state(1, task_pb2.TASK_STATE_PENDING),
        state(2, task_pb2.TASK_STATE_PROCESSING),
        progress(3, 0.25),
        progress(4, 0.5),
        progress(5, 0.75),
        state(6, task_pb2.TASK_STATE_COMPLETED, terminal=True),
    ]


# An event, a google.rpc.Status, or a function.
Step: TypeAlias = Any


@dataclass
class Script:
    """What the server does, and what it was asked. Answers without an entry are built from the request."""

    refusals: deque[status_pb2.Status] = field(default_factory=deque)
    """Each ends one unary call."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Method → response, or a function from the request to it."""
    watches: deque[list[Step]] = field(default_factory=deque)
    """Each serves one watch: events are sent, a status ends it, a function is awaited."""
    requests: dict[str, list[Any]] = field(default_factory=dict)
    identities: list[str] = field(default_factory=list)
    """What each call said in `authorization`; "" for nothing."""

    def asked(self, method: str) -> list[Any]:
        return self.requests.get(method, [])


UNARY: dict[str, dict[str, tuple[Any, Any]]] = {
    "ProducerService": {
        "SubmitTask": (producer_pb2.SubmitTaskRequest, producer_pb2.SubmitTaskResponse),
        "SubmitTasks": (producer_pb2.SubmitTasksRequest, producer_pb2.SubmitTasksResponse),
        "CancelTask": (producer_pb2.CancelTaskRequest, producer_pb2.CancelTaskResponse),
    },
    "DeadLetterService": {
        name: (getattr(dead_letter_pb2, f"{name}Request"), getattr(dead_letter_pb2, f"{name}Response"))
        for name in ("ListDeadLetters", "GetDeadLetter", "RedriveDeadLetters", "DiscardDeadLetters")
    },
    "QueueService": {
        name: (getattr(queue_pb2, f"{name}Request"), getattr(queue_pb2, f"{name}Response"))
        for name in ("ListQueues", "GetQueue", "PauseQueue", "ResumeQueue", "PurgeQueue")
    },
    "StatusService": {
        name: (getattr(reads_pb2, f"{name}Request"), getattr(reads_pb2, f"{name}Response"))
        for name in ("GetTask", "ListTasks", "GetSystemStatus", "GetInferenceStatus")
    },
}
STREAMS: dict[str, tuple[Any, Any]] = {
    "WatchTask": (reads_pb2.WatchTaskRequest, reads_pb2.WatchTaskResponse),
    "WatchTasks": (reads_pb2.WatchTasksRequest, reads_pb2.WatchTasksResponse),
}


class ScriptedServer:
    """Serves a Script."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.address = ""
        self.port = 0

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        found = []
        for service, methods in UNARY.items():
            calls: dict[str, Any] = {
                name: grpc.unary_unary_rpc_method_handler(
                    self._unary(name, answer), request.FromString, answer.SerializeToString
                )
                for name, (request, answer) in methods.items()
            }
            if service == "StatusService":
                for name, (request, answer) in STREAMS.items():
                    calls[name] = grpc.unary_stream_rpc_method_handler(
                        self._stream(name, answer), request.FromString, answer.SerializeToString
                    )
            found.append(grpc.method_handlers_generic_handler(f"headrace.v1.{service}", calls))
        return found

    def _unary(self, name: str, answer: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            self.script.requests.setdefault(name, []).append(request)
            self.script.identities.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
            if self.script.refusals:
                await abort(context, self.script.refusals.popleft())
            scripted = self.script.answers.get(name, DEFAULTS.get(name, answer()))
            if isinstance(scripted, status_pb2.Status):
                await abort(context, scripted)
            return scripted(request) if callable(scripted) else scripted

        return call

    def _stream(self, name: str, answer: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            self.script.requests.setdefault(name, []).append(request)
            self.script.identities.append(str(dict(context.invocation_metadata() or ()).get("authorization", "")))
            for step in self.script.watches.popleft():
                if isinstance(step, event_pb2.TaskEvent):
                    yield answer(event=step)
                elif isinstance(step, status_pb2.Status):
                    await abort(context, step)
                else:
                    await step()

        return call


def accepted(request: producer_pb2.SubmitTaskRequest) -> producer_pb2.SubmitTaskResponse:
    """The task that the request asks for."""
    task = task_pb2.Task(
        id=TASK,
        kind=request.kind,
        namespace=request.namespace,
        queue=request.queue or "default",
        labels=request.labels,
        idempotency_key=request.idempotency_key,
        state=task_pb2.TASK_STATE_PENDING,
        sequence=1,
    )
    return producer_pb2.SubmitTaskResponse(task=task, created=True)


def accepted_all(request: producer_pb2.SubmitTasksRequest) -> producer_pb2.SubmitTasksResponse:
    """A task for each."""
    results = [producer_pb2.SubmitTaskResult(response=accepted(one)) for one in request.requests]
    return producer_pb2.SubmitTasksResponse(results=results)


DEFAULTS: dict[str, Any] = {"SubmitTask": accepted, "SubmitTasks": accepted_all}


@asynccontextmanager
async def serving(script: Script, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[ScriptedServer]:
    """Serve `script` on a free port, with `credentials` over TLS."""
    scripted = ScriptedServer(script)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(scripted.handlers())
    if credentials is None:
        scripted.port = server.add_insecure_port("127.0.0.1:0")
    else:
        scripted.port = server.add_secure_port("127.0.0.1:0", credentials)
    scripted.address = f"127.0.0.1:{scripted.port}"
    await server.start()
    try:
        yield scripted
    finally:
        await server.stop(None)
