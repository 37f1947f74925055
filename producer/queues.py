"""QueueService on the wire: figures, pause, resume, purge."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc

from headrace.v1 import queue_pb2 as pb
from headrace.v1 import queue_pb2_grpc
from headrace_core.db.pool import Database
from headrace_core.errors import InvalidFields, UnknownQueue, Violation
from headrace_core.rpc.queues import queue_message
from headrace_core.tasks import queues
from headrace_core.tasks.audit import Action, recorded
from headrace_core.tasks.figures import Figures
from producer.announcing import Announcer
from producer.arguments import answered_within
from producer.auditing import action_of
from producer.queue_loads import QueueLoads
from producer.relay import Relay

# A purge works in batches and may take as long as its client waits.
LONGEST_PURGE = 600.0

Context = grpc.aio.ServicerContext[Any, Any]


class QueueServicer(queue_pb2_grpc.QueueServiceServicer):
    """Shows and steers queues."""

    def __init__(self, db: Database, figures: Figures, loads: QueueLoads, relay: Relay, announcer: Announcer) -> None:
        self._db = db
        self._figures = figures
        self._loads = loads
        self._relay = relay
        self._announcer = announcer

    async def ListQueues(  # noqa: D102, N802 - described in the proto
        self,
        request: pb.ListQueuesRequest,  # noqa: ARG002 - it has no fields
        context: Context,
    ) -> pb.ListQueuesResponse:
        async with answered_within(context):
            found = await self._figures.all()
        return pb.ListQueuesResponse(queues=[queue_message(figures) for figures in found])

    async def GetQueue(  # noqa: D102, N802
        self, request: pb.GetQueueRequest, context: Context
    ) -> pb.GetQueueResponse:
        async with answered_within(context):
            return pb.GetQueueResponse(queue=queue_message(await self._figures.of(_name(request.name))))

    async def PauseQueue(  # noqa: D102, N802
        self, request: pb.PauseQueueRequest, context: Context
    ) -> pb.PauseQueueResponse:
        action = action_of("pause", request, context)
        async with answered_within(context):
            async with recorded(self._db, action):
                await queues.pause(self._db, _name(request.name), action)
            await self._loads.refresh()
            return pb.PauseQueueResponse(queue=await self._look(request.name))

    async def ResumeQueue(  # noqa: D102, N802
        self, request: pb.ResumeQueueRequest, context: Context
    ) -> pb.ResumeQueueResponse:
        action = action_of("resume", request, context)
        async with answered_within(context):
            async with recorded(self._db, action):
                await queues.resume(self._db, _name(request.name), action)
            await self._loads.refresh()
            self._relay.nudge()
            return pb.ResumeQueueResponse(queue=await self._look(request.name))

    async def PurgeQueue(  # noqa: D102, N802
        self, request: pb.PurgeQueueRequest, context: Context
    ) -> pb.PurgeQueueResponse:
        action = action_of("purge", request, context)
        async with answered_within(context, LONGEST_PURGE), recorded(self._db, action):
            await self._figures.of(_name(request.name))
            return pb.PurgeQueueResponse(purged=await self._purge(request.name, action))

    async def _look(self, name: str) -> pb.Queue:
        return queue_message(await self._figures.of(name, fresh=True))

    async def _purge(self, name: str, action: Action | None) -> int:
        """What was there when the call came. Each batch is a transaction of its own; a call that breaks off leaves the
        rest waiting, and can be repeated.
        """
        # Clocks of the producers and of Postgres differ; what comes within this second may go as well.
        before = datetime.now(UTC) + timedelta(seconds=1)
        purged = 0
        last_look = False
        while True:
            wakes = await queues.purge(self._db, name, before, last_look=last_look, action=action)
            self._announcer.wake(wakes)
            purged += len(wakes)
            if action is not None:
                action.done = purged
            if not wakes and last_look:
                return purged
            last_look = not wakes


def _name(name: str) -> str:
    if not name:
        raise InvalidFields.of([Violation("name", "it is required")])
    if "\0" in name:
        raise UnknownQueue("a name with the character NUL is no queue's", metadata={})
    return name
