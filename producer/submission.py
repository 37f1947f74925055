"""Submitting, from a message to an answer: valid? known already? admissible? then the group commit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from headrace.v1 import producer_pb2
from headrace_core.access.identity import ANYONE, Identity
from headrace_core.access.table import SUBMITTERS, namespace_of
from headrace_core.db.pool import Database
from headrace_core.errors import (
    BacklogFull,
    DatabaseUnavailable,
    DeadLettersFull,
    DomainError,
    InvalidFields,
    KeyReused,
    PermissionDenied,
    Violation,
)
from headrace_core.rpc.convert import fill_task
from headrace_core.rpc.status import status_of
from headrace_core.tasks.model import NewTask, Submitted
from headrace_core.tasks.submit import find_by_key
from headrace_core.telemetry import metrics, tracing
from producer.admission import Admission
from producer.namespaces import Namespaces
from producer.salvage import SalvagedBatch
from producer.submit import RETRY_AFTER, Answer, GroupCommit
from producer.tracing import accepting
from producer.validation import MAX_REQUESTS, SubmitRequest, validated

Request = producer_pb2.SubmitTaskRequest | DomainError
"""As it came, or why it could not be read."""

# How many requests are checked before other callers get a turn: 30 µs each.
_BREATH = 50


class Submission:
    """The use case of SubmitTask and SubmitTasks."""

    def __init__(self, db: Database, admission: Admission, commits: GroupCommit, namespaces: Namespaces) -> None:
        self._db = db
        self._namespaces = namespaces
        self._admission = admission
        self._commits = commits

    async def submit_one(
        self, message: producer_pb2.SubmitTaskRequest, *, within: float, identity: Identity = ANYONE
    ) -> producer_pb2.SubmitTaskResponse:
        """Accept one task, or raise the DomainError that says why not; within `within` seconds either way."""
        answer = (await self._submit([message], within, identity))[0]
        if isinstance(answer, DomainError):
            raise answer
        return _response(answer)

    async def submit_many(
        self,
        batch: producer_pb2.SubmitTasksRequest | SalvagedBatch,
        *,
        within: float,
        identity: Identity = ANYONE,
    ) -> producer_pb2.SubmitTasksResponse:
        """Accept each task on its own. Raises InvalidFields for none or too many, DatabaseUnavailable for all."""
        messages: Sequence[Request] = batch.requests
        if not 1 <= len(messages) <= MAX_REQUESTS:
            said = f"there are {len(messages)}; 1 to {MAX_REQUESTS} are allowed"
            raise InvalidFields.of([Violation("requests", said)])
        answers = await self._submit(messages, within, identity)
        response = producer_pb2.SubmitTasksResponse()
        for answer in answers:
            _fill_result(response.results.add(), answer)
        return response

    async def _submit(
        self, messages: Sequence[Request], within: float, identity: Identity
    ) -> list[Submitted | DomainError]:
        try:
            answers = await self._submit_within(messages, within, identity)
        except DomainError as error:
            _count_refused(error, len(messages))
            raise
        _count(answers)
        return answers

    async def _submit_within(
        self, messages: Sequence[Request], within: float, identity: Identity
    ) -> list[Submitted | DomainError]:
        try:
            async with asyncio.timeout(within):
                return await self._submit_all(messages, within, identity)
        except TimeoutError as error:
            raise DatabaseUnavailable(
                "Postgres did not answer in time; whether the task was accepted is unknown:"
                " repeat the identical request with its idempotency key",
                retry_after=RETRY_AFTER,
            ) from error

    async def _submit_all(
        self, messages: Sequence[Request], within: float, identity: Identity
    ) -> list[Submitted | DomainError]:
        answers: list[Submitted | DomainError | None] = []
        tasks: list[NewTask] = []
        for index, message in enumerate(messages):
            prepared = await self._prepare(message, identity)
            if isinstance(prepared, NewTask):
                tasks.append(prepared)
            answers.append(None if isinstance(prepared, NewTask) else prepared)
            if index % _BREATH == _BREATH - 1:
                await asyncio.sleep(0)
        committed = iter(await self._commit(tasks, within) if tasks else [])
        return [_checked(next(committed)) if answer is None else answer for answer in answers]

    async def _commit(self, tasks: list[NewTask], within: float) -> list[Answer]:
        answers = await self._commit_traced(tasks, within)
        self._namespaces.note([answer for answer in answers if isinstance(answer, Submitted)])
        return answers

    async def _commit_traced(self, tasks: list[NewTask], within: float) -> list[Answer]:
        if tracing.spans is None:
            return await self._commits.submit(tasks, within=within)
        with accepting(tracing.spans, tasks) as trace:
            answers = await self._commits.submit(trace.tasks, within=within)
            trace.answered(answers)
        return answers

    async def _prepare(self, message: Request, identity: Identity) -> NewTask | Submitted | DomainError:
        """A task to commit, the task that its key has brought before, or the refusal."""
        if isinstance(message, DomainError):
            return message
        now = datetime.now(UTC)
        try:
            identity.require(SUBMITTERS, namespace_of(message))
        except PermissionDenied as refusal:
            return refusal
        try:
            request = validated(message, now)
        except InvalidFields as refusal:
            return refusal
        try:
            return await self._admission.admit(request, now)
        except DatabaseUnavailable:
            raise
        except DomainError as refusal:
            return await self._known(request) or refusal

    async def _known(self, request: SubmitRequest) -> Submitted | DomainError | None:
        """A refusal for time, load or registration does not hold for what was accepted before (design, rule 12)."""
        if request.idempotency_key is None:
            return None
        found = await find_by_key(self._db, request.namespace, request.idempotency_key)
        if found is None:
            return None
        task, fingerprint = found
        return _checked(Submitted(task, created=False, reused=fingerprint != request.fingerprint))


def _count_refused(error: DomainError, number: int = 1) -> None:
    """Count tasks that were not accepted. Nothing that a client wrote becomes a label: a full queue is declared."""
    queue = error.metadata["queue"] if isinstance(error, BacklogFull | DeadLettersFull) else ""
    metrics.submits_refused_total.labels(error.reason, queue).inc(number)


def _count(answers: Iterable[Submitted | DomainError]) -> None:
    """Count all but the new tasks, which `Relay.committed` counts by the batch."""
    for answer in answers:
        if isinstance(answer, DomainError):
            _count_refused(answer)
        elif not answer.created:
            metrics.submits_repeated_total.labels(answer.task.kind, answer.task.queue).inc()


def _checked(answer: Submitted | InvalidFields) -> Submitted | DomainError:
    if isinstance(answer, InvalidFields) or not answer.reused:
        return answer
    return KeyReused(
        f"the idempotency key belongs to task {answer.task.id}, which was submitted with another request",
        metadata={"id": str(answer.task.id)},
    )


def _response(answer: Submitted) -> producer_pb2.SubmitTaskResponse:
    response = producer_pb2.SubmitTaskResponse(created=answer.created)
    fill_task(response.task, answer.task)
    return response


def _fill_result(result: producer_pb2.SubmitTaskResult, answer: Submitted | DomainError) -> None:
    if isinstance(answer, Submitted):
        result.response.created = answer.created
        fill_task(result.response.task, answer.task)
        return
    status = status_of(answer)
    error = producer_pb2.SubmitError(code=status.code, message=status.message, details=status.details)
    result.error.CopyFrom(error)
