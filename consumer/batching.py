"""Dynamic batching: one call of a batch handler for many units, each of which is still settled on its own."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from consumer.attempt import Attempt, judge
from consumer.context import AsyncBatchContext, AsyncContext, Reporting, ThreadBatchContext, ThreadContext
from consumer.execution.threads import Threads
from consumer.invocation import arguments_of, outcome_of, raised
from consumer.registry import RegisteredHandler
from consumer.tracing import batch_trace
from headrace.handler_values import InputRefused, matched
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.outcome import Outcome


@dataclass(slots=True)
class _Member:
    """One unit of a batch, and where its entry of the answer goes."""

    attempt: Attempt
    input: Any
    context: Any
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Batch:
    """A batch that fills, then runs."""

    members: list[_Member] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    call: asyncio.Future[Any] | None = None
    cancelled: Any = None


class Batcher:
    """Gathers the units of one batch handler: up to `max_batch_size`, or until `max_batch_timeout` after the first."""

    def __init__(
        self, handler: RegisteredHandler, queue: QueueSettings, calls: int, threads: Threads, reporting: Reporting
    ) -> None:
        """`calls` is how many calls of the handler run at once."""
        assert handler.function is not None
        self._handler = handler
        self._function: Callable[..., Any] = handler.function
        self._is_async = inspect.iscoroutinefunction(handler.function)
        self._size = queue.max_batch_size
        self._wait = queue.max_batch_timeout
        self._free = asyncio.Semaphore(calls)
        self._threads = threads
        self._reporting = reporting
        self._filling: _Batch | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, attempt: Attempt) -> Outcome | None:
        """Run one attempt as part of a batch. An input that does not fit the model fails alone."""
        try:
            (value,) = arguments_of(self._handler, attempt.unit.type, attempt.unit.payload, ())
        except InputRefused as error:
            return raised(error)
        context_class = AsyncContext if self._is_async else ThreadContext
        answer = asyncio.get_running_loop().create_future()
        member = _Member(attempt, value, context_class(attempt, self._reporting), answer)
        batch = self._join(member)
        attempt.on_asked = functools.partial(_ask, batch, member)
        leave = functools.partial(self._leave, batch, member)
        await attempt.until_over(answer, leave, self._handler.timeout + self._wait)
        return judge(attempt, answer, functools.partial(outcome_of, self._handler, attempt.unit.type))

    async def close(self) -> None:
        """Wait for what was cancelled; a second at most."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1.0)

    def _join(self, member: _Member) -> _Batch:
        batch = self._filling
        if batch is None:
            batch = self._filling = _Batch()
            batch.timer = asyncio.get_running_loop().call_later(self._wait, self._close, batch)
        batch.members.append(member)
        if len(batch.members) >= self._size:
            self._close(batch)
        return batch

    def _close(self, batch: _Batch) -> None:
        """The batch is full or its time is up: it runs."""
        if self._filling is batch:
            self._filling = None
        if batch.timer is not None:
            batch.timer.cancel()
        task = asyncio.get_running_loop().create_task(self._run(batch), name=f"batch-{self._handler.kind}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _leave(self, batch: _Batch, member: _Member) -> None:
        """A unit is to end: its entry of the answer is dropped. The call is cancelled with its last unit."""
        member.answer.cancel()
        if all(other.answer.done() for other in batch.members):
            if batch.cancelled is not None:
                batch.cancelled.set()
            if batch.call is not None and self._is_async:
                batch.call.cancel()

    async def _run(self, batch: _Batch) -> None:
        async with self._free:
            batch.members = [member for member in batch.members if not member.answer.done()]
            if not batch.members:
                return
            for member in batch.members:
                member.attempt.begin()
            try:
                answers = matched(await self._call(batch), len(batch.members))
            except BaseException as error:
                answers = [error] * len(batch.members)
                if isinstance(error, asyncio.CancelledError) and _cancelling():
                    raise
        for member, answer in zip(batch.members, answers, strict=True):
            _deliver(member.answer, answer)

    def _call(self, batch: _Batch) -> Awaitable[Any]:
        contexts = [member.context for member in batch.members]
        inputs = [member.input for member in batch.members]
        trace = batch_trace([member.attempt.trace for member in batch.members], self._handler.kind)
        if self._is_async:
            batch.cancelled = asyncio.Event()
            context: Any = AsyncBatchContext(contexts, batch.cancelled)
            within = None if trace is None else trace.context
            batch.call = asyncio.get_running_loop().create_task(self._function(context, inputs), context=within)
        else:
            batch.cancelled = threading.Event()
            context = ThreadBatchContext(contexts, batch.cancelled)
            call = functools.partial(self._function, context, inputs)
            batch.call = self._threads.submit(call if trace is None else functools.partial(trace.context.run, call))
        if trace is not None:
            batch.call.add_done_callback(trace.ended)
        if all(member.attempt.asked for member in batch.members):
            batch.cancelled.set()
        return batch.call


def _ask(batch: _Batch, member: _Member) -> None:
    """A unit is asked to end; the call as a whole once all of its units are."""
    member.context.cancelled.set()
    if batch.cancelled is not None and all(other.attempt.asked for other in batch.members):
        batch.cancelled.set()


def _deliver(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, asyncio.CancelledError):
        future.cancel()
    elif isinstance(answer, BaseException):
        future.set_exception(RuntimeError("StopIteration") if isinstance(answer, StopIteration) else answer)
    else:
        future.set_result(answer)


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
