"""The contexts that handlers get in tests: they keep what is reported in memory."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headrace.handler_values import checkpoint_text
from headrace.testing.records import HandlerRun, Progress

MAX_MESSAGE_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Facts:
    """What a context says of its unit."""

    kind: str
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    attempt: int = 1
    epoch: int = 1
    deadline: datetime | None = None
    restored: Any = None
    shard_index: int | None = None


class StandardLog:
    """`ctx.log` on the logging of the standard library, logger `handler.<kind>`: pytest's caplog sees it."""

    def __init__(self, facts: Facts) -> None:
        self._logger = logging.getLogger(f"handler.{facts.kind}")
        self._bound = {"task": facts.task_id, "attempt": facts.attempt}

    def debug(self, event: str, **fields: Any) -> None:
        """See Log.debug."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """See Log.info."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """See Log.warning."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """See Log.error."""
        self._write(logging.ERROR, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        text = " ".join([event, *(f"{name}={value!r}" for name, value in (self._bound | fields).items())])
        self._logger.log(level, "%s", text)


class RecordingContext:
    """The names that both forms share. `on_report` is told after every report, on the handler's own thread."""

    def __init__(self, facts: Facts, cancelled: Any, on_report: Callable[[HandlerRun], None]) -> None:
        self.task_id = facts.task_id
        self.attempt = facts.attempt
        self.epoch = facts.epoch
        self.deadline = facts.deadline
        self.restored = facts.restored
        self.shard_index = facts.shard_index
        self.log = StandardLog(facts)
        self.cancelled = cancelled
        self.run = HandlerRun()
        self.usage = self.run.usage
        self._on_report = on_report

    def count(self, name: str, amount: float = 1) -> None:
        """Raise the usage counter `name`."""
        self.usage[name] = self.usage.get(name, 0) + amount

    def note_progress(self, fraction: float, message: str) -> None:
        """Keep a report of progress as a consumer would write it."""
        number = float(fraction)
        clamped = 0.0 if math.isnan(number) else min(max(number, 0.0), 1.0)
        shown = _clean(message).encode()[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore")
        self.run.progress.append(Progress(clamped, shown))
        self._on_report(self.run)

    def note_output(self, text: str) -> None:
        """Keep output."""
        self.run.outputs.append(_clean(text))
        self._on_report(self.run)

    def note_checkpoint(self, data: Any) -> None:
        """Keep a checkpoint as the next attempt would get it. Raises ValueError as in a consumer."""
        self.run.checkpoints.append(json.loads(checkpoint_text(data)))
        self._on_report(self.run)


class AsyncContext(RecordingContext):
    """The context of async handlers. Each report gives way to the loop: there an interruption can arrive."""

    async def progress(self, fraction: float, message: str = "") -> None:
        """See TaskContext.progress."""
        self.note_progress(fraction, message)
        await asyncio.sleep(0)

    async def output(self, text: str) -> None:
        """See TaskContext.output."""
        self.note_output(text)
        await asyncio.sleep(0)

    async def checkpoint(self, data: Any) -> None:
        """See TaskContext.checkpoint. Raises ValueError for data that is no JSON or too large."""
        self.note_checkpoint(data)
        await asyncio.sleep(0)


class SyncContext(RecordingContext):
    """The context of plain functions."""

    def progress(self, fraction: float, message: str = "") -> None:
        """See TaskContext.progress."""
        self.note_progress(fraction, message)

    def output(self, text: str) -> None:
        """See TaskContext.output."""
        self.note_output(text)

    def checkpoint(self, data: Any) -> None:
        """See TaskContext.checkpoint. Raises ValueError for data that is no JSON or too large."""
        self.note_checkpoint(data)


class BatchContext:
    """The context of a batch handler: `tasks` holds a context for each input, the rest speaks for all of them."""

    def __init__(self, facts: Facts, tasks: Sequence[RecordingContext], cancelled: Any) -> None:
        self.tasks = list(tasks)
        self.cancelled = cancelled
        self.task_id = self.tasks[0].task_id
        self.attempt = facts.attempt
        self.epoch = facts.epoch
        self.deadline = facts.deadline
        self.restored = None
        self.shard_index = None
        self.log = StandardLog(facts)
        self.usage: dict[str, float] = {}

    def count(self, name: str, amount: float = 1) -> None:
        """Raise the usage counter `name` of the batch."""
        self.usage[name] = self.usage.get(name, 0) + amount


class AsyncBatchContext(BatchContext):
    """For async batch handlers."""

    async def progress(self, fraction: float, message: str = "") -> None:
        """Report the progress of every task of the batch."""
        for task in self.tasks:
            task.note_progress(fraction, message)

    async def output(self, text: str) -> None:
        """Give every task of the batch this output."""
        for task in self.tasks:
            task.note_output(text)

    async def checkpoint(self, data: Any) -> None:
        """Give every task of the batch this checkpoint."""
        for task in self.tasks:
            task.note_checkpoint(data)


class SyncBatchContext(BatchContext):
    """For plain batch handlers."""

    def progress(self, fraction: float, message: str = "") -> None:
        """Report the progress of every task of the batch."""
        for task in self.tasks:
            task.note_progress(fraction, message)

    def output(self, text: str) -> None:
        """Give every task of the batch this output."""
        for task in self.tasks:
            task.note_output(text)

    def checkpoint(self, data: Any) -> None:
        """Give every task of the batch this checkpoint."""
        for task in self.tasks:
            task.note_checkpoint(data)


def event_for(is_async: bool) -> asyncio.Event | threading.Event:
    """What `ctx.cancelled` is: the form that the handler can wait for."""
    return asyncio.Event() if is_async else threading.Event()


def _clean(text: str) -> str:
    """As it can be stored: no NUL, no half surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
