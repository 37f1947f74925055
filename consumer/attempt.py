"""One attempt of a unit while it runs: why it is to end, and whether it has.

Whoever ends an attempt from outside (a lost lease, a cancellation, a drain, the timeout) calls `end`; whoever runs it
waits in `until_over`. What that means is decided by pure functions here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from enum import Enum
from typing import Any

from consumer.invocation import raised
from consumer.registry import RegisteredHandler
from consumer.tracing import AttemptTrace
from headrace_core.bus.puller import Message
from headrace_core.tasks.model import ClaimedUnit
from headrace_core.tasks.outcome import Interrupted, Outcome, Raised, TimedOut

CANCEL_GRACE_SECONDS = 5.0
"""How long a handler may take to end after it was told to, before it is given up."""
GIVE_UP_SECONDS = 0.5
"""The same when the consumer is stopping: somebody else waits for the unit."""
CHECKPOINTED_SECONDS = 0.1
"""What a handler that was asked to end has left after its checkpoint: time to return, if that was its last step."""
MAX_MESSAGE = 200
"""Characters of a progress message that an error quotes."""


class Cause(Enum):
    """Why an attempt ends before its handler is done."""

    TIMED_OUT = "timed out"
    STALLED = "made no progress"
    DRAINING = "the consumer is stopping"
    CANCELLED = "the task was cancelled"
    FENCED = "the lease was lost"

    @property
    def settles(self) -> bool:
        """Whether there is anything left to write: not once the lease or the task is somebody else's."""
        return self in (Cause.TIMED_OUT, Cause.STALLED, Cause.DRAINING)

    @property
    def is_failure(self) -> bool:
        """Whether it is the handler's own fault, whatever it returns or raises afterwards."""
        return self in (Cause.TIMED_OUT, Cause.STALLED)


class Attempt:
    """A claimed unit in this process. All methods belong to the event loop."""

    def __init__(self, unit: ClaimedUnit, handler: RegisteredHandler, message: Message | None) -> None:
        self.unit = unit
        self.handler = handler
        self.message = message
        self.started_at = self.ended_at = time.monotonic()
        """`ended_at`: once its handler has ended."""
        """What brought it; None if it was claimed straight from Postgres."""
        self.trace: AttemptTrace | None = None
        """Its span; None where traces are off."""
        self.parts: Sequence[bytes] = ()
        """Of a merge."""
        self.outcome = ""
        """How its handler ended, for the metrics: succeeded, raised, …"""
        self.cause: Cause | None = None
        self.asked = False
        """The handler was told that the consumer is stopping; it may still finish."""
        self.begun = False
        """Its handler has been called."""
        self.settling = False
        self.on_asked: Callable[[], None] | None = None
        """Set by the context: raises ctx.cancelled."""
        self.lingering: asyncio.Future[Any] | None = None
        """A handler that would not end; its slot is free when this is done."""
        self.given_up = False
        """Its handler, which runs in the attempt's own task, would not end; it was settled without it."""
        self.on_given_up: Callable[[], None] | None = None
        """Called when that is so."""
        self.abandoned = False
        """The consumer leaves it to a takeover: a cancellation of its task is no cancellation of the handler's."""
        self._last: tuple[float, str] | None = None
        self._reported_at = 0.0
        self._reporting = 0
        self._interrupt: Callable[[], object] | None = None
        self._grace = CANCEL_GRACE_SECONDS
        self._is_over = False
        self._is_calling = False
        self._over: asyncio.Future[None] | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    @property
    def last_progress(self) -> str:
        """The last progress that its handler has reported: 0.40 'loading page 7'; empty: none."""
        if self._last is None:
            return ""
        fraction, message = self._last
        return f"{fraction:.2f} {message[:MAX_MESSAGE]!r}" if message else f"{fraction:.2f}"

    @property
    def log_fields(self) -> dict[str, Any]:
        """What a line about it carries that is not written in its own context: trace_id, where it is traced."""
        return {} if self.trace is None else {"trace_id": self.trace.trace_id}

    def is_to_end(self) -> bool:
        """Whether it is to end, for whatever cause."""
        return self.cause is not None

    def ask(self) -> None:
        """Tell the handler, through ctx.cancelled, that it should end soon."""
        self.asked = True
        if self.on_asked is not None:
            self.on_asked()

    def end(self, cause: Cause, grace: float = CANCEL_GRACE_SECONDS) -> None:
        """Interrupt the handler; after `grace` seconds it is given up. A cause that forbids settling overrides."""
        if self.settling or self._is_over:
            self._override(cause)
            return
        first, sooner = self.cause is None, grace < self._grace
        self._override(cause)
        self._grace = min(grace, self._grace)
        self.ask()
        if first:
            self._strike()
        elif sooner and "grace" in self._timers:
            self._later("grace", self._grace, self._finish)

    def progressed(self, fraction: float, message: str) -> None:
        """The handler has reported progress."""
        self._last = (float(fraction), str(message))
        self._reported_at = _now()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """While the handler writes output or a checkpoint: that takes as long as Postgres does and is no standstill."""
        self._reporting += 1
        try:
            yield
        finally:
            self._reporting -= 1
            self._reported_at = _now()

    def checkpointed(self) -> None:
        """A checkpoint is stored. One that was asked to end has nothing left to lose: it is handed back."""
        if self.asked and self.cause is None:
            self._later("checkpointed", CHECKPOINTED_SECONDS, self.end, Cause.DRAINING, GIVE_UP_SECONDS)

    async def turn(self, places: asyncio.Semaphore) -> bool:
        """Wait for a place, which the caller releases; False if the attempt is to end before it has one."""
        waiting = asyncio.ensure_future(places.acquire())
        try:
            acquired = await self.unless_ended(waiting)
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                places.release()
            raise
        if acquired and self.is_to_end():
            places.release()
            return False
        return acquired

    async def unless_ended(self, waiting: asyncio.Future[Any]) -> bool:
        """Wait for what the handler needs before it is called; False, and it is cancelled, if the attempt is to end."""
        if self.is_to_end():
            waiting.cancel()
        self._interrupt = waiting.cancel
        try:
            await asyncio.wait([waiting])
        except asyncio.CancelledError:
            waiting.cancel()
            raise
        finally:
            self._interrupt = None
        return not waiting.cancelled()

    def begin(self) -> None:
        """Its handler is called now: from here on it can stand still."""
        self.begun = True
        self._reported_at = _now()
        self._watch_progress()

    async def call(self, handler: Awaitable[Any], timeout: float, accept: Callable[[Any], Outcome]) -> Outcome | None:
        """Run an async handler in the current task, which belongs to this attempt; `accept` judges its result.

        A task of its own for the handler would cost a tenth of what the whole unit costs. It is interrupted by a
        cancellation of the task; if it does not end within the grace, the attempt is given up and this returns late.
        """
        task = asyncio.current_task()
        assert task is not None
        self._interrupt = task.cancel
        self._is_calling = True
        self._later("timeout", timeout, self.end, Cause.TIMED_OUT)
        try:
            value = await handler
        except (Exception, asyncio.CancelledError) as error:
            if self.abandoned:
                raise
            return failed_by(self, error)
        else:
            return ended_by(self) if self.is_spoilt() else accept(value)
        finally:
            self._interrupt = None
            self._is_calling = False
            self._is_over = True
            self._cancel_timers()
            if task.cancelling() and not self.abandoned:
                await _absorb_cancellation(task)

    async def until_over(self, future: asyncio.Future[Any], interrupt: Callable[[], object], timeout: float) -> bool:
        """Wait for `future`, at most `timeout` seconds and the grace. True if it is done, False if it was given up.

        `interrupt` is called at most once, when the attempt is to end. Whoever calls the handler says `begin`.
        """
        self._interrupt = interrupt
        self._over = asyncio.get_running_loop().create_future()
        self._later("timeout", timeout, self.end, Cause.TIMED_OUT)
        future.add_done_callback(self._finish)
        if self.cause is not None:
            self._strike()
        try:
            await self._over
        except asyncio.CancelledError:
            interrupt()  # we are abandoned; the handler must not outlive us where that can be helped
            raise
        finally:
            future.remove_done_callback(self._finish)
            self._cancel_timers()
        if not future.done():
            self.lingering = future
        return future.done()

    def _override(self, cause: Cause) -> None:
        if self.cause is None or not cause.settles:
            self.cause = cause

    def _strike(self) -> None:
        if self._interrupt is None:
            return  # not running yet: until_over will
        self._later("grace", self._grace, self._finish)
        self._interrupt()

    def _watch_progress(self) -> None:
        """End it once it has reported nothing for its progress_timeout."""
        limit = self.handler.progress_timeout
        if limit is None or self._is_over:
            return
        if self._reporting:
            self._reported_at = _now()
        left = self._reported_at + limit - _now()
        if left > 0:
            self._later("progress", left, self._watch_progress)
        else:
            self.end(Cause.STALLED)

    def _later(self, name: str, seconds: float, call: Callable[..., object], *arguments: Any) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, call, *arguments)

    def _cancel_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()

    def is_spoilt(self) -> bool:
        """Whether a result does not count any more, however the handler ended."""
        return self.cause is not None and (not self.cause.settles or self.cause.is_failure)

    def _finish(self, _future: object = None) -> None:
        if self._is_over:
            return
        if self._over is not None:
            self._is_over = True
            if not self._over.done():
                self._over.set_result(None)
        elif self._is_calling and self.on_given_up is not None:
            self._is_over = self.given_up = True
            self.on_given_up()


def ended_by(attempt: Attempt) -> Outcome | None:
    """The outcome of an attempt that was ended from outside, without regard to the handler; None: nothing to settle."""
    match attempt.cause:
        case Cause.TIMED_OUT:
            return TimedOut(attempt.handler.timeout)
        case Cause.STALLED:
            return TimedOut(attempt.handler.progress_timeout or 0.0, _standstill(attempt))
        case Cause.DRAINING:
            return Interrupted(Cause.DRAINING.value)
        case _:
            return None


def _standstill(attempt: Attempt) -> str:
    last = attempt.last_progress
    said = f"the last: {last}" if last else "it has reported none"
    return f"no progress for {attempt.handler.progress_timeout:g} s (progress_timeout); {said}"


def failed_by(attempt: Attempt, error: BaseException) -> Outcome | None:
    """The outcome of a handler that raised.

    One that was told of a drain and raises has given up for our sake: an interruption, which costs no attempt (G4). If
    it would have failed anyway, it will again.
    """
    if attempt.cause is not None:
        return ended_by(attempt)
    failure = raised(error)
    if attempt.asked and failure.retryable:
        return Interrupted(Cause.DRAINING.value)
    if isinstance(error, asyncio.CancelledError):
        return Raised("CancelledError", "the handler was cancelled by itself")
    return failure


def judge(attempt: Attempt, future: asyncio.Future[Any], accept: Callable[[Any], Outcome]) -> Outcome | None:
    """The outcome of a handler's future after `until_over`; `accept` judges a returned value.

    A result counts also when the consumer is stopping; not after the timeout, or the answer would depend on how long
    the handler resisted.
    """
    if attempt.is_spoilt() or not future.done():
        _retrieve(future)
        return ended_by(attempt)
    if future.cancelled():
        return failed_by(attempt, asyncio.CancelledError())
    error = future.exception()
    return accept(future.result()) if error is None else failed_by(attempt, error)


async def _absorb_cancellation(task: asyncio.Task[Any]) -> None:
    """Of a handler's: it was for the handler, and may still be on its way if it came as the handler ended."""
    while task.uncancel():
        pass
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Look at the exception, or asyncio would log that nobody did; also when it comes later."""
    future.add_done_callback(_look)


def _look(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _now() -> float:
    return asyncio.get_running_loop().time()
