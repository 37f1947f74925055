"""One watch over everything: every task of the load, by its label, from before the first to after the last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

from headrace import errors
from headrace.v1 import event_pb2
from headrace.watch import is_terminal
from tests.faults.model import LABEL_WATCH
from tests.faults.workload.clients import FaultsClient

PAUSE = 0.5
# An event's time is the start of its transaction: what was committed after it may have ended a while before.
OVERLAP = timedelta(minutes=1)


class Lookout:
    """Follows the label and notes each task's events as a watch of its own."""

    def __init__(self, client: FaultsClient, labels: dict[str, str]) -> None:
        self._client = client
        self._labels = labels
        self._at: dict[str, int] = {}
        self._ended: set[str] = set()
        self._until = datetime.now(UTC)

    async def run(self) -> None:
        """Watch until cancelled; a watch that gives up is begun anew, resuming after what it showed."""
        while True:
            try:
                async with aclosing(self._watch()) as events:
                    async for event in events:
                        self._note(event)
            except errors.UnavailableError:
                await asyncio.sleep(PAUSE)

    def _watch(self) -> AsyncGenerator[event_pb2.TaskEvent]:
        going_on = {task_id: sequence for task_id, sequence in self._at.items() if task_id not in self._ended}
        return self._client.sdk.watch_many(
            labels=self._labels, after_sequences=going_on, ended_since=self._until - OVERLAP
        )

    async def finish(self, tasks: int, within: float) -> None:
        """Wait until it has seen so many tasks end, and note the end of each watch for the checker."""
        # The checker finds a watch that ended before its task's last event, and a task without a watch.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while len(self._ended) < max(len(self._at), tasks):  # noqa: ASYNC110 - what is waited for is the server's
                    await asyncio.sleep(PAUSE)
        for task_id in self._at:
            about = {"watch": self._name(task_id), "id": task_id}
            self._client.history.note("watch_ended", **about, terminal=task_id in self._ended, code="OK")

    def _note(self, event: event_pb2.TaskEvent) -> None:
        task_id = event.task_id
        self._until = max(self._until, event.time.ToDatetime(tzinfo=UTC))
        if event.HasField("snapshot") and task_id in self._ended and event.sequence == self._at[task_id]:
            return  # a watch that was begun anew shows once more what ended shortly before
        if task_id not in self._at:
            self._client.history.note("watch_opened", watch=self._name(task_id), id=task_id, after=None)
        self._client.note_event(self._name(task_id), event, self._at.get(task_id))
        self._at[task_id] = event.sequence
        if is_terminal(event):
            self._ended.add(task_id)
        else:
            self._ended.discard(task_id)

    def _name(self, task_id: str) -> str:
        return f"{LABEL_WATCH}{task_id}"
