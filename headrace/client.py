"""The client: submit tasks, watch them live, read their results."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypedDict, Unpack, overload

import grpc

from headrace.administration import DeadLetters, Queues
from headrace.bearer import Bearer, Token
from headrace.config import (
    DEFAULT_NAMESPACE,
    DEFAULT_PRODUCER,
    DEFAULT_STATUS,
    DEFAULT_TIMEOUT,
    PRODUCER_VARIABLE,
    STATUS_VARIABLE,
    ClientConfig,
    address,
    chosen_tls,
)
from headrace.errors import HeadraceError, InvalidFieldsError, SubmitManyError, UnavailableError, Violation
from headrace.payload import Payload
from headrace.reading import Reader
from headrace.rpc import Connection
from headrace.submit import (
    Item,
    ManySubmits,
    PriorityName,
    SubmitOptions,
    build_request,
    repeat_until_answered,
    unknown_outcome,
)
from headrace.tls import Tls
from headrace.tracing import submitting
from headrace.v1 import producer_pb2, producer_pb2_grpc, task_pb2

Tasks: TypeAlias = list[task_pb2.Task]
Outcomes: TypeAlias = list[task_pb2.Task | HeadraceError]


class TaskOptions(TypedDict, total=False):
    """What `submit_many` may say about all of its tasks; see `Client.submit`."""

    queue: str
    labels: Mapping[str, str]
    priority: PriorityName
    run_at: datetime
    delay: timedelta | float
    deadline: datetime | timedelta
    max_attempts: int


class Client(Reader):
    """Talks to the producer and the status service. Use as `async with Client() as client`.

    Connections open with the first call, so making one never fails for a server that is away. One client serves any
    number of concurrent calls on one event loop. Every method raises `headrace.HeadraceError` or a subclass.
    """

    def __init__(
        self,
        producer: str | None = None,
        status: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        silence_timeout: float = 45.0,
        reconnect_timeout: float = 120.0,
        tls: Tls | bool | None = None,
        token: Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Addresses are host:port. None: the environment's HEADRACE_PRODUCER_ADDRESS and HEADRACE_STATUS_ADDRESS, else
        127.0.0.1:50051 and 127.0.0.1:50052.

        Times are seconds: `timeout` for each call, `silence_timeout` for a watch that hears not even heartbeats,
        `reconnect_timeout` for a watch that cannot reach the server.

        `tls`: a Tls, True (the system's authorities) or False; None: as the environment says (HEADRACE_TLS,
        HEADRACE_TLS_CA_FILE, HEADRACE_CLIENT_CERT_FILE, HEADRACE_CLIENT_KEY_FILE), else no encryption. `credentials`,
        gRPC's own, take its place. `token`: a text, or a function that is called for each call and must not wait; None:
        HEADRACE_TOKEN, or what HEADRACE_TOKEN_FILE has at each call, else none is sent.

        Raises ValueError for files that cannot be used, and for a token that would go unencrypted to another machine.
        """
        config = ClientConfig(
            producer=address(producer, PRODUCER_VARIABLE, DEFAULT_PRODUCER),
            status=address(status, STATUS_VARIABLE, DEFAULT_STATUS),
            namespace=namespace,
            timeout=timeout,
            silence_timeout=silence_timeout,
            reconnect_timeout=reconnect_timeout,
            tls=chosen_tls(tls) if credentials is None else None,
            bearer=Bearer.of(token, os.environ),
        )
        security = credentials or config.tls
        super().__init__(Connection("status service", config.status, security, config.bearer), config)
        self._producer = Connection("producer", config.producer, security, config.bearer)
        self.dead_letters = DeadLetters(self._producer, config)
        self.queues = Queues(self._producer, config)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End both connections and every call on them. Idempotent."""
        await asyncio.gather(self._producer.close(), self._status.close())

    def request(
        self,
        kind: str,
        payload: Payload | None = None,
        *,
        queue: str | None = None,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: PriorityName | None = None,
        run_at: datetime | None = None,
        delay: timedelta | float | None = None,
        deadline: datetime | timedelta | None = None,
        max_attempts: int | None = None,
    ) -> producer_pb2.SubmitTaskRequest:
        """Return a request for `submit_many`, without sending it. Arguments as `submit`."""
        options = SubmitOptions(
            queue=queue,
            labels=labels or {},
            priority=priority,
            run_at=run_at,
            delay=delay,
            deadline=deadline,
            max_attempts=max_attempts,
        )
        return build_request(self.config.namespace, kind, payload, idempotency_key, options)

    async def submit(
        self,
        kind: str,
        payload: Payload | None = None,
        *,
        queue: str | None = None,
        idempotency_key: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: PriorityName | None = None,
        run_at: datetime | None = None,
        delay: timedelta | float | None = None,
        deadline: datetime | timedelta | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
    ) -> task_pb2.Task:
        """Submit one task and return it once it is stored.

        `payload` is a dict or a pydantic model; None is {}. The queue is the kind's unless named. `delay` (timedelta or
        seconds) is `run_at` from now; a `deadline` may be a timedelta from now as well. A key is always sent, so a call
        that is UNAVAILABLE is repeated with the identical request for `timeout` seconds.

        Raises InvalidFieldsError, PayloadMismatchError, UnknownKindError, UnknownQueueError, IdempotencyKeyReusedError,
        BacklogFullError, DeadLettersFullError; UnavailableError says that the outcome is unknown, and names the key.
        """
        request = self.request(
            kind,
            payload,
            queue=queue,
            idempotency_key=idempotency_key,
            labels=labels,
            priority=priority,
            run_at=run_at,
            delay=delay,
            deadline=deadline,
            max_attempts=max_attempts,
        )
        try:
            with submitting(kind, self.config.namespace):
                response = await repeat_until_answered(
                    lambda seconds: self._producer.ask(self._stub.SubmitTask, request, seconds),
                    timeout or self.config.timeout,
                )
        except UnavailableError as error:
            raise unknown_outcome(error, request.idempotency_key) from error
        return response.task

    @overload
    async def submit_many(
        self,
        items: Iterable[Item],
        *,
        kind: str | None = None,
        return_errors: Literal[False] = False,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Tasks: ...
    @overload
    async def submit_many(
        self,
        items: Iterable[Item],
        *,
        kind: str | None = None,
        return_errors: Literal[True],
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Outcomes: ...
    async def submit_many(
        self,
        items: Iterable[Item],
        *,
        kind: str | None = None,
        return_errors: bool = False,
        timeout: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> Tasks | Outcomes:
        """Submit any number of tasks, 500 in a call, and return them in order.

        `items` are payloads, all of `kind` and with the same `options` (as `submit`, without a key), or requests made
        by `request`. `timeout` (seconds) is for each call, repeats included. If some are not accepted: with
        `return_errors` the error stands in the task's place, otherwise
        SubmitManyError is raised, which carries all results.
        """
        many = ManySubmits(
            lambda request, seconds: self._producer.ask(self._stub.SubmitTasks, request, seconds),
            timeout or self.config.timeout,
        )
        with submitting(kind or "", self.config.namespace) as note_count:
            outcomes = await many.run(items, lambda item: self._as_request(item, kind, options))
            note_count(len(outcomes))
        if not return_errors and any(isinstance(outcome, HeadraceError) for outcome in outcomes):
            raise SubmitManyError(outcomes)
        return outcomes

    async def cancel(self, id: str, *, timeout: float | None = None) -> task_pb2.Task:
        """Cancel a task that has not ended. Raises TaskNotFoundError, TaskTerminalError."""
        request = producer_pb2.CancelTaskRequest(id=id)
        response = await self._producer.ask(self._stub.CancelTask, request, timeout or self.config.timeout)
        return response.task

    def _as_request(self, item: Item, kind: str | None, options: TaskOptions) -> producer_pb2.SubmitTaskRequest:
        if not isinstance(item, producer_pb2.SubmitTaskRequest):
            if kind is None:
                what = "needed for payloads; only requests made by `request` bring their own"
                raise InvalidFieldsError(f"kind: {what}", violations=[Violation("kind", what)])
            return self.request(kind, item, **options)
        if item.HasField("idempotency_key"):
            return item
        # Without a key a repeat would be a second task.
        keyed = producer_pb2.SubmitTaskRequest(idempotency_key=str(uuid.uuid4()))
        keyed.MergeFrom(item)
        return keyed

    @property
    def _stub(self) -> producer_pb2_grpc.ProducerServiceAsyncStub:
        stub: producer_pb2_grpc.ProducerServiceAsyncStub = self._producer.stub(producer_pb2_grpc.ProducerServiceStub)
        return stub
