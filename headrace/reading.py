"""Reading: tasks, their events and results, and how the system is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal, TypeAlias

from headrace.config import ClientConfig
from headrace.errors import CallTimeoutError, InvalidFieldsError, Violation, task_ended
from headrace.rpc import Connection
from headrace.submit import invalid_field, timestamp
from headrace.v1 import event_pb2, status_pb2, status_pb2_grpc, task_pb2
from headrace.watch import TERMINAL, Patience, Positions, Source, Watch, is_terminal

PAGE = 200
StateName: TypeAlias = Literal["PENDING", "PROCESSING", "COMPLETED", "FAILED", "CANCELLED", "EXPIRED"]


class Reader:
    """The half of the client that talks to the status service. Nothing here changes a task."""

    def __init__(self, connection: Connection, config: ClientConfig) -> None:
        self.config = config
        self._status = connection

    async def get(self, id: str, *, full: bool = False, timeout: float | None = None) -> task_pb2.Task:
        """Return one task; `full` with payload, result, attempts and shards. Raises TaskNotFoundError."""
        view = status_pb2.TASK_VIEW_FULL if full else status_pb2.TASK_VIEW_BASIC
        request = status_pb2.GetTaskRequest(id=id, view=view)
        response = await self._status.ask(self._reads.GetTask, request, timeout or self.config.timeout)
        return response.task

    async def watch(
        self, id: str, after_sequence: int | None = None, *, heartbeats: bool = False
    ) -> AsyncGenerator[event_pb2.TaskEvent]:
        """Yield a task's events, each once and in order, until it has ended; broken connections are resumed.

        Begins with a snapshot, or after `after_sequence` (0: with the first event). `heartbeats` yields them as well.
        Raises TaskNotFoundError, SequenceBeyondEndError, UnavailableError once nobody answers for reconnect_timeout.
        """
        after = {} if after_sequence is None else {id: after_sequence}
        async with aclosing(
            self._watch(Source(lambda seen: self._one(id, seen.to_resume())), Positions(after), heartbeats)
        ) as events:
            async for event in events:
                yield event

    async def watch_many(
        self,
        ids: Iterable[str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        queue: str = "",
        kind: str = "",
        after_sequences: Mapping[str, int] | None = None,
        ended_since: datetime | None = None,
        heartbeats: bool = False,
    ) -> AsyncGenerator[event_pb2.TaskEvent]:
        """Yield the events of many tasks on one stream; each task has the promises of `watch`.

        By `ids` (at most 10,000) it ends with the last of them. Without, it follows the tasks of this client's
        namespace that match, those submitted later included, and ends only when the caller stops.

        `after_sequences` (task id → last sequence seen) resumes an earlier watch. A watch without `ids` then misses
        what was submitted and ended in between, unless `ended_since` (aware) names a time before: at most 10,000 such
        tasks, each with its snapshot. Within one watch all of this happens by itself.
        """
        if ids is not None:
            if ended_since is not None:
                raise invalid_field("ended_since", "only without ids: a watch of ids names all of its tasks")
            wanted = tuple(ids)
            source = Source(lambda seen: self._many(status_pb2.WatchTasksRequest(ids=wanted), seen.to_resume()))
        else:
            chosen = self._filter(None, kind, queue, (), labels)
            source = Source(lambda seen: self._many(_following(chosen, seen), seen.to_follow()), endless=True)
        since = 0 if ended_since is None else timestamp(ended_since, "ended_since").ToNanoseconds()
        async with aclosing(self._watch(source, Positions(after_sequences, since), heartbeats)) as events:
            async for event in events:
                yield event

    async def result(self, id: str, timeout: float | None = None) -> Any:
        """Wait until the task has ended and return its result, decoded from JSON.

        `timeout` in seconds; None waits as long as the task takes. Raises TaskFailed, TaskCancelled, TaskExpired with
        the task, its reason and error; CallTimeoutError.
        """
        task = await self.wait(id, timeout)
        if task.state != task_pb2.TASK_STATE_COMPLETED:
            raise task_ended(task)
        return json.loads(task.result_json)

    async def wait(self, id: str, timeout: float | None = None) -> task_pb2.Task:
        """Wait until the task has ended, however it does, and return it in full. Raises CallTimeoutError."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._end_of(id)
                    task = await self.get(id, full=True)
                    if task.state in TERMINAL:
                        return task
                    # Redriven between the two calls: it runs again.
        except TimeoutError:
            raise CallTimeoutError(f"task {id} has not ended within {timeout:g} s") from None

    async def list(
        self,
        *,
        namespace: str | None = None,
        kind: str = "",
        queue: str = "",
        states: Iterable[StateName] = (),
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        page_size: int = PAGE,
    ) -> AsyncGenerator[task_pb2.Task]:
        """Yield tasks that match, newest first, basic view, page by page. `namespace` "" is any, None this client's."""
        chosen = self._filter(namespace, kind, queue, states, labels)
        if created_after is not None:
            chosen.created_after.CopyFrom(timestamp(created_after, "created_after"))
        if created_before is not None:
            chosen.created_before.CopyFrom(timestamp(created_before, "created_before"))
        token = ""
        while True:
            request = status_pb2.ListTasksRequest(filter=chosen, page_size=page_size, page_token=token)
            page = await self._status.ask(self._reads.ListTasks, request, self.config.timeout)
            for task in page.tasks:
                yield task
            token = page.next_page_token
            if not token:
                return

    async def system_status(self, *, timeout: float | None = None) -> status_pb2.SystemStatus:
        """Return how the system is: mode, broker, database, queues, consumers."""
        request = status_pb2.GetSystemStatusRequest()
        seconds = timeout or self.config.timeout
        return (await self._status.ask(self._reads.GetSystemStatus, request, seconds)).system_status

    async def inference_status(self, *, timeout: float | None = None) -> status_pb2.InferenceStatus:
        """Return how the inference back end is, as consumers last saw it."""
        request = status_pb2.GetInferenceStatusRequest()
        seconds = timeout or self.config.timeout
        return (await self._status.ask(self._reads.GetInferenceStatus, request, seconds)).inference_status

    async def _end_of(self, id: str) -> None:
        async with aclosing(self.watch(id)) as events:
            async for event in events:
                if is_terminal(event):
                    return

    async def _watch(
        self, source: Source, positions: Positions, heartbeats: bool
    ) -> AsyncGenerator[event_pb2.TaskEvent]:
        patience = Patience(first=self.config.timeout, later=self.config.reconnect_timeout)
        watching = Watch(source, positions, patience)
        async with aclosing(watching.events(heartbeats=heartbeats)) as events:
            async for event in events:
                yield event

    async def _one(self, id: str, seen: Mapping[str, int]) -> AsyncGenerator[event_pb2.TaskEvent]:
        request = status_pb2.WatchTaskRequest(id=id, after_sequence=seen.get(id))
        stream = self._status.listen(self._reads.WatchTask, request, self.config.silence_timeout)
        async with aclosing(stream) as responses:
            async for response in responses:
                yield response.event

    async def _many(
        self, template: status_pb2.WatchTasksRequest, seen: Mapping[str, int]
    ) -> AsyncGenerator[event_pb2.TaskEvent]:
        request = status_pb2.WatchTasksRequest(after_sequences=seen)
        request.MergeFrom(template)
        stream = self._status.listen(self._reads.WatchTasks, request, self.config.silence_timeout)
        async with aclosing(stream) as responses:
            async for response in responses:
                yield response.event

    def _filter(
        self,
        namespace: str | None,
        kind: str,
        queue: str,
        states: Iterable[StateName],
        labels: Mapping[str, str] | None,
    ) -> status_pb2.TaskFilter:
        return status_pb2.TaskFilter(
            namespace=self.config.namespace if namespace is None else namespace,
            kind=kind,
            queue=queue,
            states=[state_number(name) for name in states],
            labels=labels,
        )

    @property
    def _reads(self) -> status_pb2_grpc.StatusServiceAsyncStub:
        stub: status_pb2_grpc.StatusServiceAsyncStub = self._status.stub(status_pb2_grpc.StatusServiceStub)
        return stub


def state_number(name: str) -> task_pb2.TaskState.ValueType:
    """The state called `name` (`FAILED`, in any case). Raises InvalidFieldsError, naming them all, if there is none."""
    try:
        return task_pb2.TaskState.Value(f"TASK_STATE_{name.upper()}")
    except ValueError:
        known = ", ".join(value.removeprefix("TASK_STATE_") for value in task_pb2.TaskState.keys()[1:])
        what = f"{name!r} is no state; there are {known}"
        raise InvalidFieldsError(f"states: {what}", violations=[Violation("states", what)]) from None


def _following(chosen: status_pb2.TaskFilter, seen: Positions) -> status_pb2.WatchTasksRequest:
    """What ended while nobody was connected is shown, too; at the first connection there is no such time."""
    request = status_pb2.WatchTasksRequest(filter=chosen)
    if seen.ended_since:
        request.ended_since.FromNanoseconds(seen.ended_since)
    return request
