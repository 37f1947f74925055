"""What handlers are given as `ctx`: the async form, and the blocking one for threads."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, Protocol

from consumer.attempt import Attempt
from consumer.unit_facts import facts_of
from headrace.handler_values import checkpoint_text
from headrace_core.tasks.model import ClaimedUnit, Lease
from headrace_core.telemetry import logs

LOOP_ANSWER_SECONDS = 1.0


class Reporting(Protocol):
    """Where a context's reports go."""

    def progress(self, lease: Lease, fraction: float, message: str) -> None:
        """Note progress; written with the next batch."""

    async def output(self, lease: Lease, text: str) -> None:
        """Note output; waits while too much of it is not yet written."""

    async def checkpoint(self, lease: Lease, data: bytes) -> bool:
        """Store a checkpoint; False: the lease is lost."""


class Reports:
    """What the handler of one attempt reports, whatever runs it: noted with the attempt, and passed on."""

    def __init__(self, attempt: Attempt, reporting: Reporting) -> None:
        self._attempt = attempt
        self._lease = attempt.unit.lease
        self._reporting = reporting

    def progress(self, fraction: float, message: str) -> None:
        """See Reporting.progress."""
        self._reporting.progress(self._lease, fraction, message)
        self._attempt.progressed(fraction, message)

    async def output(self, text: str) -> None:
        """See Reporting.output."""
        with self._attempt.reporting():
            await self._reporting.output(self._lease, text)

    async def checkpoint(self, data: bytes) -> None:
        """See Reporting.checkpoint."""
        with self._attempt.reporting():
            await self._reporting.checkpoint(self._lease, data)
        self._attempt.checkpointed()


class Facts:
    """What every context knows of its unit. Parsed and bound on first use: most handlers need none of it."""

    def __init__(self, unit: ClaimedUnit) -> None:
        self._unit = unit
        self.attempt = unit.attempt
        self.epoch = unit.lease.epoch
        self.deadline: datetime | None = unit.deadline
        self.shard_index = unit.lease.unit_id.unit if unit.type == "SHARD" else None
        self.usage: dict[str, float] = {}

    @functools.cached_property
    def task_id(self) -> str:
        """The task's id."""
        return str(self._unit.lease.unit_id.task_id)

    @functools.cached_property
    def restored(self) -> Any:
        """The checkpoint of an earlier attempt, or None."""
        return None if self._unit.checkpoint is None else json.loads(self._unit.checkpoint)

    @functools.cached_property
    def log(self) -> Any:
        """A logger that carries what the unit is."""
        return logs.get(f"handler.{self._unit.kind}").bind(**facts_of(self._unit))

    def count(self, name: str, amount: float = 1) -> None:
        """Raise the usage counter `name`."""
        self.usage[name] = self.usage.get(name, 0) + amount


class AsyncContext(Facts):
    """The context of async handlers."""

    def __init__(self, attempt: Attempt, reporting: Reporting) -> None:
        super().__init__(attempt.unit)
        self._attempt = attempt
        self._reporting = reporting

    @functools.cached_property
    def cancelled(self) -> asyncio.Event:
        """Set when the handler should end soon."""
        event = asyncio.Event()
        self._attempt.on_asked = event.set
        if self._attempt.asked:
            event.set()
        return event

    @functools.cached_property
    def _reports(self) -> Reports:
        return Reports(self._attempt, self._reporting)

    async def progress(self, fraction: float, message: str = "") -> None:
        """See TaskContext.progress."""
        self._reports.progress(fraction, message)

    async def output(self, text: str) -> None:
        """See TaskContext.output."""
        await self._reports.output(text)

    async def checkpoint(self, data: Any) -> None:
        """See TaskContext.checkpoint. Raises ValueError for data that is no JSON or too large."""
        await self._reports.checkpoint(checkpoint_text(data))


class ThreadContext(Facts):
    """The context of plain functions, which run in threads: the same names, blocking."""

    def __init__(self, attempt: Attempt, reporting: Reporting) -> None:
        super().__init__(attempt.unit)
        self.cancelled = threading.Event()
        self._reports = Reports(attempt, reporting)
        self._loop = asyncio.get_running_loop()
        attempt.on_asked = self.cancelled.set
        if attempt.asked:
            self.cancelled.set()

    def progress(self, fraction: float, message: str = "") -> None:
        """See TaskContext.progress."""
        self._loop.call_soon_threadsafe(self._reports.progress, fraction, message)

    def output(self, text: str) -> None:
        """See TaskContext.output."""
        self._wait(self._reports.output(text))

    def checkpoint(self, data: Any) -> None:
        """See TaskContext.checkpoint. Raises ValueError for data that is no JSON or too large."""
        self._wait(self._reports.checkpoint(checkpoint_text(data)))

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Wait for the loop; once the unit is to end, for another second only."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            told = self.cancelled.is_set()
            try:
                return future.result(LOOP_ANSWER_SECONDS)
            except TimeoutError:
                if told or self._loop.is_closed():
                    future.cancel()
                    raise


class BatchContext:
    """The context of an async batch handler: `tasks` holds a context for each input, in order.

    The common names speak for all of them: the earliest deadline, the sum of the usage, a report to each.
    """

    def __init__(self, tasks: Sequence[Any], cancelled: Any) -> None:
        self.tasks = list(tasks)
        self.cancelled = cancelled
        """Set once all of the tasks are to end."""
        self.task_id = self.tasks[0].task_id
        self.attempt = max(task.attempt for task in self.tasks)
        self.epoch = max(task.epoch for task in self.tasks)
        self.deadline = min((task.deadline for task in self.tasks if task.deadline), default=None)
        self.restored = None
        self.shard_index = None
        self.usage: dict[str, float] = {}

    @functools.cached_property
    def log(self) -> Any:
        """A logger that carries the tasks' ids."""
        return logs.get("handler.batch").bind(tasks=[task.task_id for task in self.tasks])

    def count(self, name: str, amount: float = 1) -> None:
        """Raise the usage counter `name` of the batch."""
        self.usage[name] = self.usage.get(name, 0) + amount


class AsyncBatchContext(BatchContext):
    """For async batch handlers."""

    async def progress(self, fraction: float, message: str = "") -> None:
        """Report the progress of every task of the batch."""
        for task in self.tasks:
            await task.progress(fraction, message)

    async def output(self, text: str) -> None:
        """Give every task of the batch this output."""
        for task in self.tasks:
            await task.output(text)

    async def checkpoint(self, data: Any) -> None:
        """Give every task of the batch this checkpoint."""
        for task in self.tasks:
            await task.checkpoint(data)


class ThreadBatchContext(BatchContext):
    """For plain batch handlers."""

    def progress(self, fraction: float, message: str = "") -> None:
        """Report the progress of every task of the batch."""
        for task in self.tasks:
            task.progress(fraction, message)

    def output(self, text: str) -> None:
        """Give every task of the batch this output."""
        for task in self.tasks:
            task.output(text)

    def checkpoint(self, data: Any) -> None:
        """Give every task of the batch this checkpoint."""
        for task in self.tasks:
            task.checkpoint(data)
