"""Threads for plain handlers.

Not concurrent.futures: its threads are joined when the interpreter ends, so that one stuck handler would keep the
process from exiting. These are daemons, made when none is idle; the number of calls is limited by whoever asks.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any

JOIN_SECONDS = 1.0

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Threads:
    """Runs functions in threads. Belongs to one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._number = 0
        self._closed = False

    def submit(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `function` in a thread; its result or exception comes in the future. It cannot be interrupted."""
        future: asyncio.Future[Any] = self._loop.create_future()
        worker = self._idle.pop() if self._idle else self._start()
        # What the lines of this call are about, the handler's own libraries included.
        worker.jobs.put((functools.partial(contextvars.copy_context().run, function), future))
        return future

    async def close(self) -> None:
        """End the idle threads; a busy one ends after its call, or with the process."""
        self._closed = True
        for worker in self._idle:
            worker.jobs.put(None)
        for worker in self._idle:
            await asyncio.to_thread(worker.thread.join, JOIN_SECONDS)
        self._idle.clear()

    def _start(self) -> _Worker:
        self._number += 1
        worker = _Worker(f"{self._name}-{self._number}", self._loop, self._done)
        self._all.add(worker)
        worker.thread.start()
        return worker

    def _done(self, worker: _Worker, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if self._closed:
            worker.jobs.put(None)
        else:
            self._idle.append(worker)
        if future.done():
            return  # given up and cancelled meanwhile
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class _Worker:
    """One thread and its next job."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, done: Callable[..., None]) -> None:
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._loop = loop
        self._done = done

    def _live(self) -> None:
        while (job := self.jobs.get()) is not None:
            function, future = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:  # noqa: BLE001 - whatever a handler raises is its outcome
                error = RuntimeError("StopIteration left the handler") if isinstance(raised, StopIteration) else raised
            try:
                self._loop.call_soon_threadsafe(self._done, self, future, result, error)
            except RuntimeError:
                return  # the loop has closed: the process is ending
            job = function = future = result = error = None  # type: ignore[assignment] # nothing kept while idle
