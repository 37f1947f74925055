"""Background tasks that cannot die unnoticed: each has a name, an owner and a policy for its failure."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from headrace_core.telemetry import logs, metrics

OnFailure = Literal["restart", "stop"]
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
# A task that has run this long before it failed begins again with the first delay.
STEADY_SECONDS = 30.0

log = logs.get(__name__)


class BackgroundFailure(Exception):
    """A background task with the policy "stop" has failed; its exception is the cause."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"background task {name!r} failed: {type(error).__name__}: {error}")
        self.name = name


class Supervisor:
    """Owns the background tasks of one service. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._stopping = False
        self._failed = asyncio.Event()
        self._failure: BackgroundFailure | None = None

    def spawn(
        self, name: str, work: Callable[[], Awaitable[None]], *, on_failure: OnFailure = "restart"
    ) -> asyncio.Task[None]:
        """Run `work()` in the background. A normal return ends the task for good.

        An exception (and a CancelledError that nobody asked for) is a failure: "restart" calls `work` again after a
        delay of 0.1 s that doubles up to 5 s; "stop" makes it fatal for the process, see `wait_failed`.
        Raises RuntimeError after `stop`.
        """
        if self._stopping:
            raise RuntimeError(f"background task {name!r} was started after the stop")
        task = asyncio.create_task(self._watch(name, work, on_failure), name=name)
        self._tasks[task] = name
        task.add_done_callback(self._forget)
        return task

    @property
    def failure(self) -> BackgroundFailure | None:
        """The first fatal failure; None so far."""
        return self._failure

    async def wait_failed(self) -> BackgroundFailure:
        """Wait, without a limit, for the first fatal failure."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    async def stop(self, within: float = 5.0) -> list[str]:
        """Cancel every task and wait at most `within` seconds. Returns, and logs, the names of those that did not end.

        Idempotent. Cancelled a second time at half time: libraries have been seen to swallow a cancellation.
        """
        self._stopping = True
        for _ in range(2):
            pending = self._others()
            if not pending:
                return []
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=within / 2)
        stuck = sorted(task.get_name() for task in self._others())
        if stuck:
            log.error("background tasks did not end", action="background.stuck", names=stuck, within=within)
        return stuck

    def _others(self) -> list[asyncio.Task[None]]:
        """All but the caller: a task may bring its own supervisor down."""
        return [task for task in self._tasks if task is not asyncio.current_task()]

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)

    async def _watch(self, name: str, work: Callable[[], Awaitable[None]], on_failure: OnFailure) -> None:
        delay = FIRST_DELAY
        while True:
            started = asyncio.get_running_loop().time()
            error = await self._attempt(work)
            if error is None:
                return
            if on_failure == "stop":
                self._give_up(name, error)
                return
            if asyncio.get_running_loop().time() - started >= STEADY_SECONDS:
                delay = FIRST_DELAY
            metrics.background_restarts_total.labels(name).inc()
            log.error(
                "background task failed; starting it again",
                action="background.restart",
                name=name,
                delay=delay,
                exc_info=error,
            )
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> BaseException | None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await work()
        except asyncio.CancelledError as error:
            # Ours, or one that leaked out of something that `work` awaited: that would end the task without a word.
            if self._stopping or task.cancelling():
                raise
            return error
        except Exception as error:  # noqa: BLE001 - the policy decides; it is logged with its traceback
            return error
        return None

    def _give_up(self, name: str, error: BaseException) -> None:
        log.critical("background task failed for good", action="background.fatal", name=name, exc_info=error)
        if self._failure is None:
            self._failure = BackgroundFailure(name, error)
            self._failure.__cause__ = error
            self._failed.set()
