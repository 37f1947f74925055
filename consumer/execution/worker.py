"""A worker process: one unit at a time, for handlers that are CPU-bound, untrusted or under suspicion.

Started as `python -m consumer.execution.worker <fd> <log level> <modules…>`. Ends when its consumer does, however
that ended: the socket closes, and on Linux the kernel kills it with its parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import json
import os
import queue
import signal
import socket
import sys
import threading
from datetime import datetime
from typing import Any

from consumer.execution.wire import Frame, pack, receive
from consumer.invocation import arguments_of, function_of, outcome_of, raised
from consumer.registry import Registry, collect
from consumer.tracing import continued
from headrace.handler_values import checkpoint_text
from headrace_core.tasks.outcome import Planned, Raised, Succeeded
from headrace_core.telemetry import logs, tracing
from headrace_core.telemetry.failures import log_uncaught
from headrace_core.telemetry.subject import about

PR_SET_PDEATHSIG = 1
ORPHANED = 70
ANSWER_SECONDS = 1.0


class Channel:
    """The worker's end of the socket. A thread reads it; the unit's own thread writes."""

    def __init__(self, connection: socket.socket) -> None:
        self.units: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self._connection = connection
        self._answers: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Read frames until the consumer has gone, then end this process, whatever the handler is doing."""
        while (frame := receive(self._connection)) is not None:
            if frame["type"] == "run":
                self.cancelled.clear()
                self.units.put(frame)
            elif frame["type"] == "cancel":
                self.cancelled.set()
            else:
                self._answers.put(frame)
        os._exit(ORPHANED)

    def tell(self, frame: Frame) -> None:
        """Send without an answer."""
        with self._lock:
            self._connection.sendall(pack(frame))

    def ask(self, frame: Frame) -> None:
        """Send and wait for the answer; the consumer ends this process if the unit is to end before."""
        self.tell(frame)
        while True:
            try:
                self._answers.get(timeout=ANSWER_SECONDS)
            except queue.Empty:
                continue
            return


class WorkerContext:
    """SyncTaskContext in a worker process."""

    def __init__(self, frame: Frame, channel: Channel) -> None:
        self.task_id: str = frame["task"]
        self.attempt: int = frame["attempt"]
        self.epoch: int = frame["epoch"]
        self.deadline = datetime.fromisoformat(frame["deadline"]) if frame["deadline"] else None
        self.shard_index: int | None = frame["shard_index"]
        self.restored = json.loads(frame["checkpoint"]) if frame["checkpoint"] is not None else None
        self.usage: dict[str, float] = {}
        self.cancelled = channel.cancelled
        self._frame = frame
        self._channel = channel

    @functools.cached_property
    def log(self) -> Any:
        """A logger that carries what the unit is."""
        return logs.get(f"handler.{self._frame['kind']}").bind(**self._frame["facts"])

    def count(self, name: str, amount: float = 1) -> None:
        """Raise the usage counter `name`."""
        self.usage[name] = self.usage.get(name, 0) + amount

    def progress(self, fraction: float, message: str = "") -> None:
        """See TaskContext.progress."""
        self._channel.tell({"type": "progress", "fraction": fraction, "message": message})

    def output(self, text: str) -> None:
        """See TaskContext.output."""
        self._channel.ask({"type": "output", "text": text})

    def checkpoint(self, data: Any) -> None:
        """See TaskContext.checkpoint."""
        self._channel.ask({"type": "checkpoint", "data": checkpoint_text(data).decode()})


class AsyncWorkerContext(WorkerContext):
    """TaskContext in a worker process: an async handler comes here when it is under suspicion.

    Its calls block the worker's loop, which runs nothing but this handler.
    """

    async def progress(self, fraction: float, message: str = "") -> None:  # type: ignore[override]
        """See TaskContext.progress."""
        super().progress(fraction, message)

    async def output(self, text: str) -> None:  # type: ignore[override]
        """See TaskContext.output."""
        await asyncio.to_thread(super().output, text)

    async def checkpoint(self, data: Any) -> None:  # type: ignore[override]
        """See TaskContext.checkpoint."""
        await asyncio.to_thread(super().checkpoint, data)


def run_unit(registry: Registry, frame: Frame, channel: Channel) -> Frame:
    """Run one unit and return its outcome as a frame."""
    about(lambda: frame["facts"])
    handler = registry.handlers[frame["kind"]]
    unit_type = frame["unit_type"]
    try:
        function = function_of(handler, unit_type)
        parts = [part.encode() for part in frame["parts"]]
        arguments = arguments_of(handler, unit_type, frame["payload"].encode(), parts)
        if handler.batch:
            arguments = [[arguments[0]]]
        with continued(frame["trace"]):
            value = _call(function, frame, channel, arguments, batch=handler.batch)
        if handler.batch:
            value = _only(value)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises is its outcome
        return _outcome_frame(raised(error))
    return _outcome_frame(outcome_of(handler, unit_type, value))


def _call(function: Any, frame: Frame, channel: Channel, arguments: list[Any], *, batch: bool) -> Any:
    is_async = inspect.iscoroutinefunction(function)
    context: Any = AsyncWorkerContext(frame, channel) if is_async else WorkerContext(frame, channel)
    if batch:
        context.tasks = [context]
    value = function(context, *arguments)
    return asyncio.run(value) if is_async else value


def _only(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 1:
        raise TypeError("a batch handler must return a list with one entry for each input")
    return value[0]


def _outcome_frame(outcome: Succeeded | Planned | Raised) -> Frame:
    match outcome:
        case Succeeded(result):
            return {"type": "succeeded", "result": result.decode()}
        case Planned(shards, needed):
            return {"type": "planned", "shards": [shard.decode() for shard in shards], "needed": needed}
        case Raised(type_, message, retryable, retry_after):
            return {
                "type": "raised",
                "error": type_,
                "message": message[:4096],
                "retryable": retryable,
                "retry_after": retry_after,
            }


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ORPHANED)  # it died before the kernel was asked


def main(arguments: list[str]) -> None:
    """Serve units until the consumer closes the socket."""
    descriptor, parent, level, log_format, *modules = arguments
    _die_with_parent(int(parent))
    # Ctrl-C goes to the whole process group; the consumer decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs.configure(level, "console" if log_format == "console" else "json", "consumer")
    log_uncaught(logs.get(__name__))
    tracing.start("consumer", os.environ)
    connection = socket.socket(fileno=int(descriptor))
    connection.setblocking(True)
    registry = collect(modules)
    channel = Channel(connection)
    threading.Thread(target=channel.listen, name="worker-channel", daemon=True).start()
    channel.tell({"type": "ready"})
    while True:
        channel.tell(run_unit(registry, channel.units.get(), channel))
        tracing.hurry()


if __name__ == "__main__":
    main(sys.argv[1:])
