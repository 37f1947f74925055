"""Dead letters and queues, as attributes of the client: `client.dead_letters`, `client.queues`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import datetime

from headrace.config import ClientConfig
from headrace.errors import InvalidFieldsError, Violation
from headrace.payload import Payload, encode_payload
from headrace.rpc import Connection
from headrace.submit import timestamp
from headrace.v1 import (
    dead_letter_pb2,
    dead_letter_pb2_grpc,
    queue_pb2,
    queue_pb2_grpc,
)
from headrace.v1.error_pb2 import Reason

PAGE = 200
QueueSequence = Sequence[queue_pb2.Queue]


def dead_letter_filter(
    *,
    namespace: str = "",
    queue: str = "",
    kind: str = "",
    reason: str = "",
    failed_before: datetime | None = None,
    include_resolved: bool = False,
) -> dead_letter_pb2.DeadLetterFilter:
    """Return a filter; empty fields match anything. `reason` is a name such as ATTEMPTS_EXHAUSTED.

    Raises InvalidFieldsError for a reason that does not exist.
    """
    return dead_letter_pb2.DeadLetterFilter(
        namespace=namespace,
        queue=queue,
        kind=kind,
        reason=_reason(reason),
        failed_before=None if failed_before is None else timestamp(failed_before, "failed_before"),
        include_resolved=include_resolved,
    )


class DeadLetters:
    """What failed for good. Every namespace, unless a filter names one: some dead letters have none."""

    def __init__(self, connection: Connection, config: ClientConfig) -> None:
        self._connection = connection
        self._config = config

    async def list(
        self, filter: dead_letter_pb2.DeadLetterFilter | None = None, *, page_size: int = PAGE
    ) -> AsyncGenerator[dead_letter_pb2.DeadLetter]:
        """Yield dead letters, newest first, without attempts and payload. None: every open one."""
        token = ""
        while True:
            request = dead_letter_pb2.ListDeadLettersRequest(filter=filter, page_size=page_size, page_token=token)
            page = await self._connection.ask(self._stub.ListDeadLetters, request, self._config.timeout)
            for letter in page.dead_letters:
                yield letter
            token = page.next_page_token
            if not token:
                return

    async def get(self, id: str, *, timeout: float | None = None) -> dead_letter_pb2.DeadLetter:
        """Return one with attempts and payload, by its id or its task's. DeadLetterNotFoundError."""
        request = dead_letter_pb2.GetDeadLetterRequest(id=id)
        response = await self._connection.ask(self._stub.GetDeadLetter, request, timeout or self._config.timeout)
        return response.dead_letter

    async def redrive(
        self,
        ids: Iterable[str] = (),
        *,
        filter: dead_letter_pb2.DeadLetterFilter | None = None,
        rate: float = 0.0,
        dry_run: bool = False,
        payload: Payload | None = None,
        deadline: datetime | None = None,
        timeout: float | None = None,
    ) -> dead_letter_pb2.RedriveDeadLettersResponse:
        """Give failed tasks a new generation: those with `ids` (their own or their tasks'), or all of `filter`.

        `rate`: tasks per second, 0 for all at once. `payload` replaces the payload of exactly one id. At most 1,000
        ids, and 10,000 by filter, in a call. Raises DeadLetterNotFoundError, DeadLetterResolvedError,
        DeadlinePassedError.
        """
        request = dead_letter_pb2.RedriveDeadLettersRequest(
            ids=_ids(ids),
            filter=filter,
            rate=rate,
            dry_run=dry_run,
            payload_json=None if payload is None else encode_payload(payload),
            deadline=None if deadline is None else timestamp(deadline, "deadline"),
        )
        return await self._connection.ask(self._stub.RedriveDeadLetters, request, timeout or self._config.timeout)

    async def discard(
        self,
        ids: Iterable[str] = (),
        *,
        filter: dead_letter_pb2.DeadLetterFilter | None = None,
        dry_run: bool = False,
        timeout: float | None = None,
    ) -> dead_letter_pb2.DiscardDeadLettersResponse:
        """Close dead letters for good; arguments and errors as `redrive`."""
        request = dead_letter_pb2.DiscardDeadLettersRequest(ids=_ids(ids), filter=filter, dry_run=dry_run)
        return await self._connection.ask(self._stub.DiscardDeadLetters, request, timeout or self._config.timeout)

    @property
    def _stub(self) -> dead_letter_pb2_grpc.DeadLetterServiceAsyncStub:
        stub: dead_letter_pb2_grpc.DeadLetterServiceAsyncStub = self._connection.stub(
            dead_letter_pb2_grpc.DeadLetterServiceStub
        )
        return stub


class Queues:
    """Queues, seen and steered. Every method raises UnknownQueueError for a name that is not declared."""

    def __init__(self, connection: Connection, config: ClientConfig) -> None:
        self._connection = connection
        self._config = config

    async def list(self, *, timeout: float | None = None) -> QueueSequence:
        """Return every declared queue, by name."""
        ask, seconds = self._connection.ask, timeout or self._config.timeout
        return (await ask(self._stub.ListQueues, queue_pb2.ListQueuesRequest(), seconds)).queues

    async def get(self, name: str, *, timeout: float | None = None) -> queue_pb2.Queue:
        """Return one queue with its figures."""
        ask, seconds = self._connection.ask, timeout or self._config.timeout
        return (await ask(self._stub.GetQueue, queue_pb2.GetQueueRequest(name=name), seconds)).queue

    async def pause(self, name: str, *, timeout: float | None = None) -> queue_pb2.Queue:
        """Start nothing more of this queue; what runs goes on, submits are accepted. Idempotent."""
        ask, seconds = self._connection.ask, timeout or self._config.timeout
        return (await ask(self._stub.PauseQueue, queue_pb2.PauseQueueRequest(name=name), seconds)).queue

    async def resume(self, name: str, *, timeout: float | None = None) -> queue_pb2.Queue:
        """Go on with a paused queue. Idempotent."""
        ask, seconds = self._connection.ask, timeout or self._config.timeout
        return (await ask(self._stub.ResumeQueue, queue_pb2.ResumeQueueRequest(name=name), seconds)).queue

    async def purge(self, name: str, *, timeout: float | None = None) -> int:
        """Cancel every PENDING task of the queue, reason PURGED. Returns their number."""
        ask, seconds = self._connection.ask, timeout or self._config.timeout
        return (await ask(self._stub.PurgeQueue, queue_pb2.PurgeQueueRequest(name=name), seconds)).purged

    @property
    def _stub(self) -> queue_pb2_grpc.QueueServiceAsyncStub:
        stub: queue_pb2_grpc.QueueServiceAsyncStub = self._connection.stub(queue_pb2_grpc.QueueServiceStub)
        return stub


def _ids(ids: Iterable[str]) -> tuple[str, ...]:
    # A single id is an iterable of its characters, and an easy mistake.
    return (ids,) if isinstance(ids, str) else tuple(ids)


def _reason(name: str) -> Reason.ValueType:
    if not name:
        return Reason.REASON_UNSPECIFIED
    try:
        return Reason.Value(f"REASON_{name.upper()}")
    except ValueError:
        what = f"{name!r} is no reason; see the names in headrace/v1/error.proto, such as ATTEMPTS_EXHAUSTED"
        raise InvalidFieldsError(f"reason: {what}", violations=[Violation("reason", what)]) from None
