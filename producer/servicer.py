"""ProducerService on the wire: one line for each RPC, everything else is in the use cases."""

from __future__ import annotations

from typing import Any

import grpc

from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.db.pool import Database
from headrace_core.rpc.convert import task_message
from headrace_core.tasks.cancel import cancel
from producer.announcing import Announcer
from producer.arguments import answered_within, task_id, within
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
        return await self._submission.submit_one(request, within=within(context))

    async def SubmitTasks(  # noqa: D102, N802
        self, request: producer_pb2.SubmitTasksRequest, context: Context
    ) -> producer_pb2.SubmitTasksResponse:
        return await self._submission.submit_many(request, within=within(context))

    async def CancelTask(  # noqa: D102, N802
        self, request: producer_pb2.CancelTaskRequest, context: Context
    ) -> producer_pb2.CancelTaskResponse:
        async with answered_within(context):
            cancelled = await cancel(self._db, task_id(request.id))
        self._announcer.cancelled(cancelled.wakes)
        return producer_pb2.CancelTaskResponse(task=task_message(cancelled.task))
