"""ProducerService on the wire: one line for each RPC, everything else is in the use cases."""

from __future__ import annotations

from typing import Any

import grpc

from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.access.identity import ANYONE
from headrace_core.access.table import CANCELLERS
from headrace_core.db.pool import Database
from headrace_core.rpc.caller import identity_of
from headrace_core.rpc.convert import task_message
from headrace_core.tasks.audit import recorded
from headrace_core.tasks.cancel import cancel
from headrace_core.tasks.model import TaskRecord
from headrace_core.tasks.reading import not_found
from producer.announcing import Announcer
from producer.arguments import answered_within, task_id, within
from producer.auditing import action_of
from producer.submission import Submission

Context = grpc.aio.ServicerContext[Any, Any]


class ProducerServicer(producer_pb2_grpc.ProducerServiceServicer):
    """Accepts and cancels."""

    def __init__(self, db: Database, submission: Submission, announcer: Announcer) -> None:
        self._db = db
        self._submission = submission
        self._announcer = announcer

    async def SubmitTask(  # noqa: D102, N802 - described in the proto
        self, request: producer_pb2.SubmitTaskRequest, context: Context
    ) -> producer_pb2.SubmitTaskResponse:
        return await self._submission.submit_one(request, within=within(context), identity=identity_of(context))

    async def SubmitTasks(  # noqa: D102, N802
        self, request: producer_pb2.SubmitTasksRequest, context: Context
    ) -> producer_pb2.SubmitTasksResponse:
        return await self._submission.submit_many(request, within=within(context), identity=identity_of(context))

    async def CancelTask(  # noqa: D102, N802
        self, request: producer_pb2.CancelTaskRequest, context: Context
    ) -> producer_pb2.CancelTaskResponse:
        identity = identity_of(context)
        action = action_of("cancel", request, context)

        def check(task: TaskRecord) -> None:
            identity.require(CANCELLERS, task.namespace, not_found(task.id))

        async with answered_within(context), recorded(self._db, action):
            unlimited = identity is ANYONE
            cancelled = await cancel(self._db, task_id(request.id), check=None if unlimited else check, action=action)
        self._announcer.cancelled(cancelled.wakes)
        return producer_pb2.CancelTaskResponse(task=task_message(cancelled.task))
