"""Every way in which Headrace refuses a request, named after its reason: the tree that edges turn into statuses.

A `DomainError` says what a caller did or met; `headrace_core.rpc.status` turns it into a google.rpc.Status.
Anything else that reaches the edge is a defect and answered as INTERNAL.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import grpc


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that breaks a limit: its path as in the proto (`requests[3].kind`), and what is allowed."""

    field: str
    description: str


class DomainError(Exception):
    """A refusal with a reason. Subclasses fix `code` and `reason`; both are part of the API.

    `message` is one sentence for a person: what, which value, what to do. `retry_after` is in seconds; None: the
    class's default. `metadata` are short facts for programs (the id, the queue, the limit).
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    default_retry_after: ClassVar[float | None] = None
    """Seconds that RetryInfo says where the raiser knows nothing better; None: no RetryInfo."""

    def __init__(
        self,
        message: str,
        *,
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = list(violations)
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class InvalidFields(DomainError):
    """One or more fields break a documented limit; `violations` holds every one of them."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELDS"

    @classmethod
    def of(cls, violations: Iterable[Violation]) -> "InvalidFields":
        """Say all violations in the message as well, for people who do not look at the details."""
        found = list(violations)
        listed = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        return cls(listed or "a field is invalid", violations=found)


class MalformedMessage(DomainError):
    """The bytes are no message of the expected type."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "MALFORMED_MESSAGE"


class UnknownKind(DomainError):
    """No handler of this kind has been registered in the last 7 days."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_KIND"


class UnknownQueue(DomainError):
    """No queue of this name is declared."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_QUEUE"


class PayloadMismatch(DomainError):
    """The payload fits none of the schemas registered for its kind."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "PAYLOAD_MISMATCH"


class KeyReused(DomainError):
    """The idempotency key belongs to a task that was submitted with another request."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "IDEMPOTENCY_KEY_REUSED"


class TaskNotFound(DomainError):
    """No task has this id (or retention has removed it)."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "TASK_NOT_FOUND"


class DeadLetterNotFound(DomainError):
    """No dead letter has this id."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "DEAD_LETTER_NOT_FOUND"


class TaskTerminal(DomainError):
    """The task has ended; it cannot be cancelled."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "TASK_TERMINAL"


class DeadLetterResolved(DomainError):
    """The dead letter was redriven or discarded before."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "DEAD_LETTER_RESOLVED"


class DeadlinePassed(DomainError):
    """The deadline has passed; a redrive must bring a new one."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "DEADLINE_PASSED"


class BacklogFull(DomainError):
    """The queue holds max_backlog waiting tasks. Give `metadata` the queue."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "BACKLOG_FULL"
    default_retry_after = 1.0


class DeadLettersFull(DomainError):
    """The queue holds max_dead_letters open dead letters: redrive or discard some. Give `metadata` the queue."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "DEAD_LETTERS_FULL"
    default_retry_after = 30.0


class SequenceBeyondEnd(DomainError):
    """after_sequence is beyond the task's last event."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = "SEQUENCE_BEYOND_END"


class DatabaseUnavailable(DomainError):
    """Postgres could not be reached in time. At a submit the outcome is unknown: repeat the same request."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DATABASE_UNAVAILABLE"
    default_retry_after = 1.0


class Draining(DomainError):
    """The server is stopping; connect again and resume."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    default_retry_after = 0.1


class ServerLimit(DomainError):
    """A limit of this server (open streams, requests in progress) is reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "SERVER_LIMIT"
    default_retry_after = 1.0


class PageTokenInvalid(DomainError):
    """The page token is not one that this method gave for this filter."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "PAGE_TOKEN_INVALID"


class Unauthenticated(DomainError):
    """No credentials, or none that are accepted. The message never repeats them."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(DomainError):
    """Whoever calls is known and lacks the role. Give `metadata` the role."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class UnknownNamespace(DomainError):
    """Namespaces are declared, and this is none of them. Give `metadata` the namespace."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_NAMESPACE"


class QuotaExceeded(DomainError):
    """A quota of a namespace is used up. Give `metadata` the namespace, the quota and its limit."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUOTA_EXCEEDED"
    default_retry_after = 1.0


class KeysUnavailable(DomainError):
    """The keys that tokens are verified with could not be fetched yet. The token may be good."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "KEYS_UNAVAILABLE"
    default_retry_after = 1.0


class GrantsChanged(DomainError):
    """The caller of an open stream may see less than when it began; connect again and resume."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "GRANTS_CHANGED"
    default_retry_after = 0.1
