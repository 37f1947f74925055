"""A handler's call in a test: to its end, its timeout, or an interruption like that of a consumer that stops."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from headrace.handlers import NonRetryable
from headrace.testing.contexts import Facts, event_for
from headrace.testing.records import HandlerRun, Progress

END_SECONDS = 5.0
"""How long a handler may take to end once it was cancelled, as in a consumer."""
GRACE_SECONDS = 2.0


class HandlerDidNotEnd(Exception):
    """The handler went on after it was asked to end and then cancelled. A thread cannot be cancelled: it runs on."""


class Interrupted(Exception):
    """The handler gave up because it was asked to. Its own exception, if it raised one, is the cause."""


class RunOptions(TypedDict, total=False):
    """What a test may say about an attempt."""

    attempt: int
    """Counts from 1. Default 1."""
    epoch: int
    """Default: `attempt`."""
    restored: Any
    """The checkpoint of an earlier attempt, such as `run.checkpoint`."""
    deadline: datetime | timedelta
    """An aware datetime, or a time from now. The handler sees it; nothing here enforces it."""
    task_id: str
    """Default: a new one."""
    timeout: timedelta
    """Default: the handler's own."""
    progress_timeout: timedelta
    """Default: the handler's own."""
    interrupt_after: float
    """Seconds after which the handler is asked to end, as by a consumer that stops."""
    interrupt_when: Callable[[HandlerRun], bool]
    """Looked at after each report: once it is true the handler is asked to end. Free of timing."""
    grace: float
    """Seconds that it has then before it is cancelled. Default 2."""
    raise_errors: bool
    """False: what the attempt raised stands in `run.error`, beside what it reported before. Default True."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """`RunOptions` with their defaults."""

    attempt: int = 1
    epoch: int | None = None
    restored: Any = None
    deadline: datetime | timedelta | None = None
    task_id: str | None = None
    timeout: timedelta | None = None
    progress_timeout: timedelta | None = None
    interrupt_after: float | None = None
    interrupt_when: Callable[[HandlerRun], bool] | None = None
    grace: float = GRACE_SECONDS
    raise_errors: bool = True

    def facts(self, kind: str, shard_index: int | None = None) -> Facts:
        """What the context says."""
        deadline = datetime.now(UTC) + self.deadline if isinstance(self.deadline, timedelta) else self.deadline
        if deadline is not None and deadline.tzinfo is None:
            raise ValueError("deadline must be an aware datetime; handlers get it in UTC")
        known: dict[str, Any] = {} if self.task_id is None else {"task_id": self.task_id}
        return Facts(
            kind,
            attempt=self.attempt,
            epoch=self.attempt if self.epoch is None else self.epoch,
            deadline=None if deadline is None else deadline.astimezone(UTC),
            restored=self.restored,
            shard_index=shard_index,
            **known,
        )


@dataclass(slots=True)
class Ending:
    """One call and how it may end. Made on the event loop; `look` is called on the handler's own thread."""

    function: Callable[..., Any]
    conditions: Conditions
    timeout: timedelta
    progress_timeout: timedelta | None
    cancelled: Any = field(init=False)
    """`ctx.cancelled`."""
    is_async: bool = field(init=False)
    _last: Progress | None = field(init=False, default=None)
    _reported_at: float = field(init=False, default=0.0)
    _asked: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop = field(init=False, default_factory=asyncio.get_running_loop)

    def __post_init__(self) -> None:
        self.is_async = inspect.iscoroutinefunction(self.function)
        self.cancelled = event_for(self.is_async)

    def look(self, run: HandlerRun) -> None:
        """The handler has reported. Ask it to end if the test's condition holds."""
        self._last = run.progress[-1] if run.progress else None
        self._reported_at = time.monotonic()
        when = self.conditions.interrupt_when
        if when is not None and not self.cancelled.is_set() and when(run):
            self.cancelled.set()
            self._loop.call_soon_threadsafe(self._asked.set)

    async def call(self, *arguments: Any) -> Any:
        """Call the function and return what it returns; raise what it raises.

        Raises:
            Interrupted: it ended without a result because it was asked to.
            TimeoutError: it ran longer than its timeout, or reported nothing for its progress_timeout.
            HandlerDidNotEnd: it ignored everything.
        """
        future = self._start(arguments)
        asking = asyncio.create_task(self._asking(), name="ask-handler")
        try:
            passed = await self._limit_passed(future, asking)
            if passed:
                return await self._time_out(future, passed)
            cancelled = not future.done() and await self._interrupt(future)
            return self._judged(future, cancelled)
        finally:
            asking.cancel()
            if not future.done():  # we are cancelled ourselves: the handler must not outlive the test
                future.cancel()
            await asyncio.wait([asking, *([future] if self.is_async else [])], timeout=END_SECONDS)

    async def _limit_passed(self, *ends: asyncio.Future[Any]) -> str:
        """Wait until one of `ends` is done; empty then, else which limit was passed before."""
        timeout = (self.conditions.timeout or self.timeout).total_seconds()
        standstill = self.conditions.progress_timeout or self.progress_timeout
        silence = math.inf if standstill is None else standstill.total_seconds()
        begun = self._reported_at = time.monotonic()
        while True:
            left = min(begun + timeout, self._reported_at + silence) - time.monotonic()
            done, _ = await asyncio.wait(ends, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return ""
            if time.monotonic() >= begun + timeout:
                return f"the handler ran longer than its timeout of {timeout:g} s"
            if time.monotonic() >= self._reported_at + silence:
                said = "it has reported none" if self._last is None else f"the last: {self._last}"
                return f"no progress for {silence:g} s (progress_timeout); {said}"

    def _start(self, arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
        if self.is_async:
            running: asyncio.Future[Any] = asyncio.ensure_future(self.function(*arguments))
            return running
        return _in_thread(self.function, arguments)

    async def _asking(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.conditions.interrupt_after):
                await self._asked.wait()
        self.cancelled.set()

    async def _interrupt(self, future: asyncio.Future[Any]) -> bool:
        """Let it end within the grace, then cancel it; say whether that was needed."""
        await asyncio.wait([future], timeout=self.conditions.grace)
        if future.done():
            return False
        await self._cancel(future, f"{self.conditions.grace:g} s after it was asked to end")
        return True

    async def _time_out(self, future: asyncio.Future[Any], message: str) -> None:
        """A result that comes after the timeout does not count: it would depend on how long the handler resisted."""
        self.cancelled.set()
        await self._cancel(future, message)
        raise TimeoutError(message) from (None if future.cancelled() else future.exception())

    async def _cancel(self, future: asyncio.Future[Any], when: str) -> None:
        if self.is_async:
            future.cancel()
        await asyncio.wait([future], timeout=END_SECONDS)
        if not future.done():
            ignored = "its cancellation" if self.is_async else "ctx.cancelled (a thread cannot be interrupted)"
            raise HandlerDidNotEnd(f"{when}: the handler ignored {ignored} for {END_SECONDS:g} s")

    def _judged(self, future: asyncio.Future[Any], cancelled: bool) -> Any:
        """A handler that was asked to end and raises has given up for our sake, as `consumer.attempt` sees it."""
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            return future.result()
        if cancelled or (
            self.cancelled.is_set()
            and isinstance(error, Exception | asyncio.CancelledError)
            and not isinstance(error, NonRetryable)
        ):
            raise Interrupted("the handler ended because it was asked to") from error
        raise error


def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> asyncio.Future[Any]:
    """Run in a daemon thread: one that is stuck must not keep the test run from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def live() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = function(*arguments)
        except BaseException as raised:  # noqa: BLE001 - whatever a handler raises is its outcome
            error = RuntimeError("StopIteration left the handler") if isinstance(raised, StopIteration) else raised
        with contextlib.suppress(RuntimeError):  # the loop has closed: the test is over
            loop.call_soon_threadsafe(_deliver, future, result, error)

    threading.Thread(target=live, name="headrace-handler", daemon=True).start()
    return future


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return  # given up meanwhile
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
