"""Which execution an attempt gets, for the handlers of one queue."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Sequence

from consumer.attempt import Attempt, ended_by, judge
from consumer.batching import Batcher
from consumer.context import AsyncContext, Reporting, ThreadContext
from consumer.execution.processes import Processes, WorkerSettings
from consumer.execution.threads import Threads
from consumer.intake.limits import calls_of
from consumer.invocation import arguments_of, function_of, outcome_of, raised
from consumer.registry import RegisteredHandler
from headrace.handler_values import InputRefused
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.outcome import Outcome


class Executions:
    """The threads, worker processes and batches of one queue. Made on the event loop; all are started when needed."""

    def __init__(
        self,
        queue: QueueSettings,
        handlers: Sequence[RegisteredHandler],
        reporting: Reporting,
        workers: WorkerSettings,
    ) -> None:
        self._reporting = reporting
        self._threads = Threads(f"headrace-{queue.name}")
        self._thread_calls = asyncio.Semaphore(calls_of(queue, "thread"))
        self._processes = Processes(calls_of(queue, "process"), workers, reporting)
        self._batchers = {
            handler.kind: Batcher(handler, queue, calls_of(queue, handler.execution), self._threads, reporting)
            for handler in handlers
            if handler.batch
        }

    async def run(self, attempt: Attempt) -> Outcome | None:
        """Run an attempt to its outcome; None if it was ended and there is nothing to settle.

        A suspect, whose process died while it ran beside others, runs alone in a process whatever its execution is:
        if that dies too, it was the suspect (rule 8).
        """
        handler = attempt.handler
        if attempt.is_to_end():
            return ended_by(attempt)
        if attempt.unit.suspect or handler.execution == "process":
            return await self._processes.run(attempt)
        batcher = self._batchers.get(handler.kind)
        if batcher is not None:
            return await batcher.run(attempt)
        if handler.execution == "thread":
            return await self._run_in_thread(attempt)
        return await self._run_on_loop(attempt)

    async def close(self) -> None:
        """End what is idle."""
        for batcher in self._batchers.values():
            await batcher.close()
        await self._processes.close()
        await self._threads.close()

    async def _run_on_loop(self, attempt: Attempt) -> Outcome | None:
        unit, handler = attempt.unit, attempt.handler
        try:
            arguments = arguments_of(handler, unit.type, unit.payload, attempt.parts)
        except InputRefused as error:
            return raised(error)
        context = AsyncContext(attempt, self._reporting)
        attempt.begin()
        accept = functools.partial(outcome_of, handler, unit.type)
        return await attempt.call(function_of(handler, unit.type)(context, *arguments), handler.timeout, accept)

    async def _run_in_thread(self, attempt: Attempt) -> Outcome | None:
        unit, handler = attempt.unit, attempt.handler
        try:
            arguments = arguments_of(handler, unit.type, unit.payload, attempt.parts)
        except InputRefused as error:
            return raised(error)
        if not await attempt.turn(self._thread_calls):
            return ended_by(attempt)
        context = ThreadContext(attempt, self._reporting)
        call = functools.partial(function_of(handler, unit.type), context, *arguments)
        if attempt.trace is not None:
            call = functools.partial(contextvars.copy_context().run, call)
        future = self._threads.submit(call)
        attempt.begin()
        # A thread that will not end keeps its place until it does.
        future.add_done_callback(lambda _: self._thread_calls.release())
        await attempt.until_over(future, _nothing, handler.timeout)
        return judge(attempt, future, functools.partial(outcome_of, handler, unit.type))


def _nothing() -> None:
    """A thread cannot be interrupted: ctx.cancelled is all it gets."""
