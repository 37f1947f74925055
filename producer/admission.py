"""May this request become a task now? The checks that depend on time, load and registration, in one place."""

from __future__ import annotations

from datetime import datetime

from headrace_core.errors import InvalidFields
from headrace_core.tasks.model import NewTask
from producer.ids import TaskIds
from producer.known_kinds import KnownKinds
from producer.namespaces import Namespaces
from producer.queue_loads import QueueLoads
from producer.validation import SubmitRequest, time_violations


class Admission:
    """Turns a valid request into a task to be committed."""

    def __init__(self, kinds: KnownKinds, loads: QueueLoads, namespaces: Namespaces) -> None:
        self._kinds = kinds
        self._namespaces = namespaces
        self._loads = loads
        self._ids = TaskIds()

    async def admit(self, request: SubmitRequest, now: datetime) -> NewTask:
        """The task, with its id and the limits of its queue.

        Raises:
            InvalidFields: its times have passed, or lie too far ahead.
            UnknownKind, UnknownQueue, PayloadMismatch, BacklogFull, DeadLettersFull: as the names say.
            UnknownNamespace, QuotaExceeded: as the names say.
            DatabaseUnavailable: what it names is not known here, and Postgres does not answer.
        """
        if violations := time_violations(request.run_at, request.deadline, now):
            raise InvalidFields.of(violations)
        kind = await self._kinds.find(request.kind)
        queue = request.queue or kind.queue
        limits = await self._loads.admit(queue)
        kind.check(request.value)
        # The last check, because it takes a place in the namespace's rate.
        self._namespaces.admit(request.namespace)
        return NewTask(
            id=self._ids.next(),
            namespace=request.namespace,
            kind=request.kind,
            queue=queue,
            payload=request.payload,
            fingerprint=request.fingerprint,
            idempotency_key=request.idempotency_key,
            labels=request.labels,
            priority=request.priority,
            run_at=request.run_at,
            deadline=request.deadline,
            max_attempts=request.max_attempts or limits.max_attempts,
            max_crashes=limits.max_crashes,
        )
