"""Submitting: requests with a key of their own, so that every one can be repeated until its outcome is known."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.backoff import Backoff
from headrace.errors import (
    HeadraceError,
    InvalidFieldsError,
    ServerLimitError,
    UnavailableError,
    Violation,
    from_status,
)
from headrace.payload import Payload, encode_payload
from headrace.v1 import producer_pb2, task_pb2

PriorityName: TypeAlias = Literal["low", "normal", "high"]
Item: TypeAlias = Payload | producer_pb2.SubmitTaskRequest
Outcome: TypeAlias = task_pb2.Task | HeadraceError
SendMany: TypeAlias = Callable[[producer_pb2.SubmitTasksRequest, float], Awaitable[producer_pb2.SubmitTasksResponse]]
T = TypeVar("T")

CHUNK_TASKS = 500
# Half of what a server accepts in a message: 500 payloads of 1 MiB are no message.
CHUNK_BYTES = 4 * 1024 * 1024
CHUNKS_IN_FLIGHT = 4
# A try that a dead connection swallowed must leave time for another.
LONGEST_TRY = 0.5
SHORTEST_TRY_SECONDS = 0.05
REPEATS = Backoff(initial=0.1, maximum=2.0)
_PRIORITIES = {
    "low": task_pb2.PRIORITY_LOW,
    "normal": task_pb2.PRIORITY_NORMAL,
    "high": task_pb2.PRIORITY_HIGH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """What may be said about a task besides its kind and payload; None and empty leave the choice to the server."""

    queue: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: PriorityName | None = None
    run_at: datetime | None = None
    delay: timedelta | float | None = None
    deadline: datetime | timedelta | None = None
    max_attempts: int | None = None


def build_request(
    namespace: str, kind: str, payload: Payload | None, key: str | None, options: SubmitOptions
) -> producer_pb2.SubmitTaskRequest:
    """Return the request, with a generated key if `key` is None. Raises InvalidFieldsError; ValueError for times."""
    encoded = encode_payload(payload)
    try:
        request = producer_pb2.SubmitTaskRequest(
            namespace=namespace,
            kind=kind,
            queue=options.queue or "",
            payload_json=encoded,
            idempotency_key=str(uuid.uuid4()) if key is None else key,
            labels=options.labels,
            priority=_priority(options.priority),
            max_attempts=options.max_attempts,
        )
    except UnicodeEncodeError as error:
        raise invalid_field("request", f"a text in it holds half a surrogate pair: {error.object[:80]!r}") from error
    now = datetime.now(UTC)
    start = _start(options, now)
    if start is not None:
        request.run_at.CopyFrom(timestamp(start, "run_at"))
    if options.deadline is not None:
        end = now + options.deadline if isinstance(options.deadline, timedelta) else options.deadline
        request.deadline.CopyFrom(timestamp(end, "deadline"))
    return request


def timestamp(moment: datetime, name: str) -> Timestamp:
    """Return `moment` as a protobuf timestamp; raises InvalidFieldsError for a naive datetime."""
    if moment.utcoffset() is None:
        raise invalid_field(name, f"{moment.isoformat()} has no time zone: pass an aware datetime")
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp


async def repeat_until_answered(send: Callable[[float], Awaitable[T]], timeout: float) -> T:
    """Call `send(seconds)` until it is answered, for at most `timeout` seconds. No answers are UnavailableError, and
    ServerLimitError: a server that has too much to do now.

    `send` must be safe to repeat. The last UnavailableError is raised if there was one: the outcome is then unknown.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    attempt = 0
    unknown: UnavailableError | None = None
    while True:
        left = max(end - loop.time(), SHORTEST_TRY_SECONDS)
        try:
            return await send(min(left, max(timeout * LONGEST_TRY, 1.0)))
        except (UnavailableError, ServerLimitError) as error:
            # A try that was refused took nothing; one before it that got no answer may have.
            unknown = error if isinstance(error, UnavailableError) else unknown
            pause = REPEATS.delay(attempt, retry_after=error.retry_after)
            if loop.time() + pause + SHORTEST_TRY_SECONDS > end:
                raise unknown or error from None
        await asyncio.sleep(pause)
        attempt += 1


def unknown_outcome(error: UnavailableError, key: str) -> UnavailableError:
    """Return `error` saying how to find out what became of the submit."""
    return type(error)(
        f"{error.message}. The outcome is unknown: submit the same again with the idempotency key {key}",
        reason=error.reason,
        code=error.code,
        retry_after=error.retry_after,
    )


@dataclass(slots=True)
class _Chunk:
    requests: dict[int, producer_pb2.SubmitTaskRequest] = field(default_factory=dict)
    size: int = 0

    def holds(self, size: int) -> bool:
        return len(self.requests) < CHUNK_TASKS and (not self.requests or self.size + size <= CHUNK_BYTES)

    def add(self, index: int, request: producer_pb2.SubmitTaskRequest, size: int) -> None:
        self.requests[index] = request
        self.size += size


class ManySubmits:
    """Sends any number of requests in chunks, a few of them at once, and keeps the outcomes in order."""

    def __init__(self, send: SendMany, timeout: float) -> None:
        """`timeout`: seconds for each chunk, repeats included."""
        self._send = send
        self._timeout = timeout
        self._slots = asyncio.Semaphore(CHUNKS_IN_FLIGHT)
        self._outcomes: list[Outcome | None] = []
        self._lost: UnavailableError | None = None

    async def run(
        self, items: Iterable[Item], build: Callable[[Item], producer_pb2.SubmitTaskRequest]
    ) -> list[Outcome]:
        """Submit all of `items`; `items` is read only as far ahead as chunks are in flight."""
        async with asyncio.TaskGroup() as group:
            for number, chunk in enumerate(self._chunks(items, build)):
                await self._slots.acquire()
                group.create_task(self._submit(chunk), name=f"submit-chunk-{number}")
        return [outcome if outcome is not None else self._unsent() for outcome in self._outcomes]

    def _chunks(
        self, items: Iterable[Item], build: Callable[[Item], producer_pb2.SubmitTaskRequest]
    ) -> Iterator[_Chunk]:
        chunk = _Chunk()
        for index, item in enumerate(items):
            self._outcomes.append(None)
            if self._lost is not None:
                continue  # nothing more is sent; the items are only counted
            try:
                request = build(item)
                size = _size_of(request)
            except HeadraceError as error:
                self._outcomes[index] = error
                continue
            except DecodeError:
                self._outcomes[index] = invalid_field("payload", "it is nested too deeply; the limit is 32 levels")
                continue
            if not chunk.holds(size):
                yield chunk
                chunk = _Chunk()
            chunk.add(index, request, size)
        if chunk.requests:
            yield chunk

    async def _submit(self, chunk: _Chunk) -> None:
        try:
            if self._lost is None:
                await repeat_until_answered(lambda seconds: self._once(chunk, seconds), self._timeout)
        except UnavailableError as error:
            self._lost = error
            for index, request in chunk.requests.items():
                self._outcomes[index] = unknown_outcome(error, request.idempotency_key)
        except HeadraceError as error:
            self._outcomes_of(chunk, error)
        finally:
            self._slots.release()

    async def _once(self, chunk: _Chunk, seconds: float) -> None:
        """Send what is still open of `chunk`. Raises UnavailableError while anything of it is."""
        request = producer_pb2.SubmitTasksRequest(requests=chunk.requests.values())
        response = await self._send(request, seconds)
        if len(response.results) != len(chunk.requests):
            raise HeadraceError(
                f"the producer answered {len(chunk.requests)} requests with {len(response.results)} results: "
                "are client and server of very different versions?"
            )
        for index, result in zip(list(chunk.requests), response.results, strict=True):
            outcome = _outcome(result)
            self._outcomes[index] = outcome
            if not isinstance(outcome, UnavailableError):
                del chunk.requests[index]
        if chunk.requests:
            first = self._outcomes[next(iter(chunk.requests))]
            assert isinstance(first, UnavailableError)
            raise first

    def _outcomes_of(self, chunk: _Chunk, error: HeadraceError) -> None:
        for index in chunk.requests:
            self._outcomes[index] = error

    def _unsent(self) -> HeadraceError:
        assert self._lost is not None
        return UnavailableError(f"not sent, because an earlier chunk failed: {self._lost.message}")


def _size_of(request: producer_pb2.SubmitTaskRequest) -> int:
    """Bytes on the wire. Raises DecodeError for a Struct that is too deep to be read, or even copied."""
    if request.HasField("payload"):
        producer_pb2.SubmitTasksRequest(requests=[request])
    return request.ByteSize()


def _outcome(result: producer_pb2.SubmitTaskResult) -> Outcome:
    if result.HasField("response"):
        return result.response.task
    return from_status(result.error.code, result.error.message, result.error.details)


def _start(options: SubmitOptions, now: datetime) -> datetime | None:
    if options.delay is None:
        return options.run_at
    if options.run_at is not None:
        raise invalid_field("run_at", "give either run_at or delay, not both")
    delay = options.delay if isinstance(options.delay, timedelta) else timedelta(seconds=options.delay)
    return now + delay


def _priority(name: PriorityName | None) -> task_pb2.Priority.ValueType:
    if name is None:
        return task_pb2.PRIORITY_UNSPECIFIED
    try:
        return _PRIORITIES[name]
    except KeyError:
        raise invalid_field("priority", f"{name!r} is none of {', '.join(_PRIORITIES)}") from None


def invalid_field(name: str, what: str) -> InvalidFieldsError:
    """Return the error of one field, as the server would say it."""
    return InvalidFieldsError(f"{name}: {what}", violations=[Violation(name, what)])
