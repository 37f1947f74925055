"""StatusService at the edge: a request is checked, handed on, and its answer wrapped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc

from headrace.v1 import status_pb2, status_pb2_grpc, task_pb2
from headrace_core.access.identity import Identity
from headrace_core.access.table import READERS
from headrace_core.db.pool import Database
from headrace_core.rpc.caller import identity_of
from headrace_core.rpc.convert import full_task_message, task_message
from headrace_core.tasks.reading import NEWEST, TaskFilter, get_full_task, list_tasks, not_found
from status import filters, pagination
from status.reads import SharedReads
from status.system import System
from status.watch import Watches

FULL_NAME = "headrace.v1.StatusService"
_LIST = "ListTasks"
# Above this size a result is turned into protobuf's JSON type in a thread: 1 MiB takes 0.1 s.
_HEAVY_BYTES = 64 * 1024
_HEAVY_SHARDS = 500

Context = grpc.aio.ServicerContext[Any, Any]


class StatusServicer(status_pb2_grpc.StatusServiceServicer):
    """The methods. Errors are DomainErrors; headrace_core.rpc turns them into statuses."""

    def __init__(self, db: Database, reads: SharedReads, watches: Watches, system: System) -> None:
        self._db = db
        self._reads = reads
        self._watches = watches
        self._system = system

    async def GetTask(  # noqa: N802 - the proto's name
        self, request: status_pb2.GetTaskRequest, context: Context
    ) -> status_pb2.GetTaskResponse:
        """One task."""
        task_id = filters.task_id(request.id)
        if request.view == status_pb2.TASK_VIEW_FULL:
            return status_pb2.GetTaskResponse(task=await self._full(task_id, identity_of(context)))
        task = await self._reads.tasks.get(task_id)
        if task is None:
            raise not_found(task_id)
        identity_of(context).require(READERS, task.namespace, not_found(task_id))
        return status_pb2.GetTaskResponse(task=task_message(task))

    async def ListTasks(  # noqa: N802 - the proto's name
        self, request: status_pb2.ListTasksRequest, context: Context
    ) -> status_pb2.ListTasksResponse:
        """A page of tasks, newest first."""
        size = pagination.page_size(request.page_size)
        wanted = _within_reach(filters.task_filter(request.filter), identity_of(context))
        query = filters.canonical(request.filter)
        token = request.page_token
        before = pagination.decode(_LIST, query, token) if token else NEWEST
        # One more than asked for tells whether there is a next page.
        tasks = await list_tasks(self._db, wanted, limit=size + 1, before=before)
        page = tasks[:size]
        following = pagination.encode(_LIST, query, page[-1].id) if len(tasks) > size else ""
        return status_pb2.ListTasksResponse(tasks=[task_message(task) for task in page], next_page_token=following)

    async def WatchTask(  # noqa: N802 - the proto's name
        self, request: status_pb2.WatchTaskRequest, context: Context
    ) -> AsyncIterator[status_pb2.WatchTaskResponse]:
        """One task, live."""
        async for event in self._watches.events(filters.watch_one(request), identity_of(context)):
            yield status_pb2.WatchTaskResponse(event=event)

    async def WatchTasks(  # noqa: N802 - the proto's name
        self, request: status_pb2.WatchTasksRequest, context: Context
    ) -> AsyncIterator[status_pb2.WatchTasksResponse]:
        """Many tasks on one stream."""
        start, identity = filters.watch_many(request), identity_of(context)
        if start.wanted is not None:
            start = replace(start, wanted=_within_reach(start.wanted, identity))
        async for event in self._watches.events(start, identity):
            yield status_pb2.WatchTasksResponse(event=event)

    async def GetSystemStatus(  # noqa: N802 - the proto's name
        self, _request: status_pb2.GetSystemStatusRequest, _context: Context
    ) -> status_pb2.GetSystemStatusResponse:
        """How the system is."""
        return status_pb2.GetSystemStatusResponse(system_status=await self._system.status())

    async def GetInferenceStatus(  # noqa: N802 - the proto's name
        self, _request: status_pb2.GetInferenceStatusRequest, _context: Context
    ) -> status_pb2.GetInferenceStatusResponse:
        """How the inference back end is."""
        return status_pb2.GetInferenceStatusResponse(inference_status=await self._system.inference())

    async def _full(self, task_id: UUID, identity: Identity) -> task_pb2.Task:
        full = await get_full_task(self._db, task_id)
        identity.require(READERS, full.record.namespace, not_found(task_id))
        heavy = len(full.result or b"") > _HEAVY_BYTES or len(full.shards) > _HEAVY_SHARDS
        return await asyncio.to_thread(full_task_message, full) if heavy else full_task_message(full)


def _within_reach(wanted: TaskFilter, identity: Identity) -> TaskFilter:
    """The filter, for what the caller may see. Raises PermissionDenied: it names a namespace of the caller's own."""
    if wanted.namespace and identity.knows(wanted.namespace):
        identity.require(READERS, wanted.namespace)
    return replace(wanted, within=identity.reach(READERS))
