"""Every error that the client raises, rebuilt by its reason and never by its text.

The server puts the reason (a name of the enum `headrace.v1.Reason` without its prefix) into google.rpc.ErrorInfo. A
reason that this version does not know becomes the class of its status code, so that old clients go on working.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage

from headrace.error_details import Details, trailing_details
from headrace.error_details import Violation as Violation  # noqa: PLC0414 - it belongs to the errors
from headrace.reasons import reason_name
from headrace.v1 import task_pb2


class HeadraceError(Exception):
    """The root. `reason` is the name of the cause ("" if the server gave none), `code` the gRPC status or None.

    `violations` lists what is wrong with which field; `retry_after` is the server's advice in seconds, or None.
    """

    default_code: ClassVar[grpc.StatusCode | None] = None
    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        code: grpc.StatusCode | None = None,
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = self.default_reason if reason is None else reason
        self.code = self.default_code if code is None else code
        self.violations = tuple(violations)
        self.retry_after = retry_after


class InvalidArgumentError(HeadraceError):
    """The request can never be accepted as it is."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class InvalidFieldsError(InvalidArgumentError):
    """Fields break documented limits; `violations` names every one."""

    default_reason = "INVALID_FIELDS"


class MalformedMessageError(InvalidArgumentError):
    """The server could not read the request's bytes."""

    default_reason = "MALFORMED_MESSAGE"


class PayloadMismatchError(InvalidArgumentError):
    """The payload fits none of the schemas registered for its kind."""

    default_reason = "PAYLOAD_MISMATCH"


class PageTokenInvalidError(InvalidArgumentError):
    """The page token belongs to another method or filter."""

    default_reason = "PAGE_TOKEN_INVALID"


class SequenceBeyondEndError(InvalidArgumentError):
    """A watch asked for events after one that does not exist."""

    default_reason = "SEQUENCE_BEYOND_END"
    default_code = grpc.StatusCode.OUT_OF_RANGE


class NotFoundError(HeadraceError):
    """What the request names does not exist."""

    default_code = grpc.StatusCode.NOT_FOUND


class UnknownKindError(NotFoundError):
    """No consumer has registered a handler of this kind in the last 7 days."""

    default_reason = "UNKNOWN_KIND"


class UnknownQueueError(NotFoundError):
    """No queue of this name is declared."""

    default_reason = "UNKNOWN_QUEUE"


class UnknownNamespaceError(NotFoundError):
    """The server knows declared namespaces only, and this is none of them."""

    default_reason = "UNKNOWN_NAMESPACE"


class TaskNotFoundError(NotFoundError):
    """No task has this id, or retention has removed it."""

    default_reason = "TASK_NOT_FOUND"


class DeadLetterNotFoundError(NotFoundError):
    """No dead letter has this id."""

    default_reason = "DEAD_LETTER_NOT_FOUND"


class RefusedByStateError(HeadraceError):
    """The request is fine, and what it is about is not in the state for it."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class IdempotencyKeyReusedError(RefusedByStateError):
    """The idempotency key belongs to a task that was submitted with another request."""

    default_reason = "IDEMPOTENCY_KEY_REUSED"
    default_code = grpc.StatusCode.ALREADY_EXISTS


class TaskTerminalError(RefusedByStateError):
    """The task has ended and cannot be cancelled."""

    default_reason = "TASK_TERMINAL"


class DeadLetterResolvedError(RefusedByStateError):
    """The dead letter was redriven or discarded before."""

    default_reason = "DEAD_LETTER_RESOLVED"


class DeadlinePassedError(RefusedByStateError):
    """The task's deadline has passed: a redrive must bring a new one."""

    default_reason = "DEADLINE_PASSED"


class LimitReachedError(HeadraceError):
    """A limit of the server is reached; `retry_after` says when to try again, where the server knows."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class BacklogFullError(LimitReachedError):
    """The queue holds max_backlog waiting tasks."""

    default_reason = "BACKLOG_FULL"


class DeadLettersFullError(LimitReachedError):
    """The queue holds max_dead_letters open dead letters: redrive or discard some."""

    default_reason = "DEAD_LETTERS_FULL"


class QuotaExceededError(LimitReachedError):
    """A quota of the namespace is used up; the message says which."""

    default_reason = "QUOTA_EXCEEDED"


class ServerLimitError(LimitReachedError):
    """The server has too many streams or requests open."""

    default_reason = "SERVER_LIMIT"


class UnavailableError(HeadraceError):
    """The service, or what it needs, cannot be reached now. Of a change the outcome is unknown."""

    default_code = grpc.StatusCode.UNAVAILABLE


class DatabaseUnavailableError(UnavailableError):
    """The service could not reach Postgres in time."""

    default_reason = "DATABASE_UNAVAILABLE"


class DrainingError(UnavailableError):
    """The server is stopping: connect again."""

    default_reason = "DRAINING"


class CallTimeoutError(UnavailableError):
    """No answer within the call's timeout. Of a change the outcome is unknown."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class KeysUnavailableError(UnavailableError):
    """The server could not fetch the keys that it verifies tokens with."""

    default_reason = "KEYS_UNAVAILABLE"


class GrantsChangedError(UnavailableError):
    """What the caller may see has become less while a stream was open: connect again."""

    default_reason = "GRANTS_CHANGED"


class UnauthenticatedError(HeadraceError):
    """The call had no credentials, or none that the server accepts: check the token."""

    default_reason = "UNAUTHENTICATED"
    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(HeadraceError):
    """The server knows who calls, and the role for this is missing."""

    default_reason = "PERMISSION_DENIED"
    default_code = grpc.StatusCode.PERMISSION_DENIED


class InternalError(HeadraceError):
    """A defect of the server; its log has the details."""

    default_reason = "INTERNAL"
    default_code = grpc.StatusCode.INTERNAL


class ClientClosedError(HeadraceError):
    """The client was used after it was closed, or closed during a call."""


class TaskEndedError(HeadraceError):
    """A task ended otherwise than COMPLETED. `task` is it, `error` its last error or None."""

    def __init__(self, task: task_pb2.Task) -> None:
        """`task`: in any terminal state but COMPLETED."""
        super().__init__(_ending(task), reason=reason_name(task.reason))
        self.task = task
        self.error = task.error if task.HasField("error") else None


class TaskFailed(TaskEndedError):
    """The task is FAILED: there is a dead letter, which can be redriven or discarded."""


class TaskCancelled(TaskEndedError):
    """The task was cancelled, purged or discarded; the reason says which."""


class TaskExpired(TaskEndedError):
    """The task's deadline passed before it could finish."""


class SubmitManyError(HeadraceError):
    """Some of many tasks were not accepted. `results` has, in order, the task or the error of each."""

    def __init__(self, results: Sequence[task_pb2.Task | HeadraceError]) -> None:
        """`results`: at least one of them is an error; the first one gives code and reason."""
        failures = [result for result in results if isinstance(result, HeadraceError)]
        first = failures[0]
        super().__init__(
            f"{len(failures)} of {len(results)} tasks were not accepted; the first: {first.message}",
            reason=first.reason,
            code=first.code,
            violations=first.violations,
            retry_after=first.retry_after,
        )
        self.results = list(results)
        self.failures = failures


_BY_REASON: dict[str, type[HeadraceError]] = {
    kind.default_reason: kind
    for kind in (
        InvalidFieldsError,
        MalformedMessageError,
        PayloadMismatchError,
        PageTokenInvalidError,
        SequenceBeyondEndError,
        UnknownKindError,
        UnknownQueueError,
        TaskNotFoundError,
        DeadLetterNotFoundError,
        IdempotencyKeyReusedError,
        TaskTerminalError,
        DeadLetterResolvedError,
        DeadlinePassedError,
        BacklogFullError,
        DeadLettersFullError,
        ServerLimitError,
        DatabaseUnavailableError,
        DrainingError,
        InternalError,
        UnauthenticatedError,
        PermissionDeniedError,
        UnknownNamespaceError,
        QuotaExceededError,
        KeysUnavailableError,
        GrantsChangedError,
    )
}

_BY_CODE: dict[grpc.StatusCode, type[HeadraceError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedByStateError,
    grpc.StatusCode.ALREADY_EXISTS: RefusedByStateError,
    grpc.StatusCode.ABORTED: RefusedByStateError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitReachedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    # gRPC's own refusal of a burst, and of a server that stops: our own cancellations never get here.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: CallTimeoutError,
}

_BY_STATE = {
    task_pb2.TASK_STATE_FAILED: TaskFailed,
    task_pb2.TASK_STATE_CANCELLED: TaskCancelled,
    task_pb2.TASK_STATE_EXPIRED: TaskExpired,
}

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def task_ended(task: task_pb2.Task) -> TaskEndedError:
    """Return the error for a terminal task that is not COMPLETED."""
    return _BY_STATE.get(task.state, TaskEndedError)(task)


def from_status(
    code: int, message: str, details: Iterable[AnyMessage], *, where: str = "", hint: str = ""
) -> HeadraceError:
    """Rebuild an error from a google.rpc code, text and details.

    `where` names the server, for unreachable ones; `hint` is what to look at, for those that say no more themselves.
    """
    status = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    found = Details.read(details)
    kind = _BY_REASON.get(found.reason) or _BY_CODE.get(status, HeadraceError)
    text = message or status.name
    if where and not found.reason and issubclass(kind, UnavailableError):
        text = f"{where} did not answer: {f'{hint}: ' if hint else ''}{text}"
    return kind(
        text,
        reason=found.reason or None,
        code=status,
        violations=found.violations,
        retry_after=found.retry_after,
    )


def from_rpc_error(error: grpc.aio.AioRpcError, *, where: str = "", hint: str = "") -> HeadraceError:
    """Rebuild an error from a failed call; arguments as `from_status`."""
    code, text = error.code().value[0], error.details() or ""
    return from_status(code, text, trailing_details(error), where=where, hint=hint)


def _ending(task: task_pb2.Task) -> str:
    state = task_pb2.TaskState.Name(task.state).removeprefix("TASK_STATE_")
    reason = reason_name(task.reason)
    text = f"task {task.id} ended {state}" + (f" ({reason})" if reason else "")
    if task.HasField("error"):
        kind = f"{task.error.type}: " if task.error.type else ""
        text += f": {kind}{task.error.message}"
    return text
