"""A live bar on standard error, for people at a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from headrace.cli import describe

if TYPE_CHECKING:
    from headrace.v1 import event_pb2, task_pb2


class TaskBar:
    """Shows how far one task is. Use as a context manager, and only where standard error is a terminal."""

    def __init__(self, title: str = "PENDING") -> None:
        from rich.console import Console  # noqa: PLC0415 - only where somebody looks
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        self._row = self._progress.add_task(title, total=1.0, amount="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: event_pb2.TaskEvent) -> None:
        """Bring the bar to what `event` says."""
        match event.WhichOneof("event"):
            case "snapshot":
                self._progress.update(self._row, description=describe.state_name(event.snapshot.state))
                self._show_progress(event.snapshot.progress)
            case "state_change" if not describe.unit_text(event.unit):
                self._progress.update(self._row, description=describe.state_name(event.state_change.state))
            case "progress" if event.progress.progress.total_shards or not describe.unit_text(event.unit):
                self._show_progress(event.progress.progress)
            case _:
                pass

    def _show_progress(self, progress: task_pb2.Progress) -> None:
        fraction = progress.fraction
        if progress.total_shards:
            fraction = progress.done_shards / progress.total_shards
        self._progress.update(self._row, completed=fraction, amount=describe.progress_text(progress))
