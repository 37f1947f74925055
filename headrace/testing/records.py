"""What a handler did in a test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of progress, clamped to 0 … 1 as watchers see it."""

    fraction: float
    message: str = ""

    def __str__(self) -> str:
        return f"{self.fraction:.2f} {self.message!r}" if self.message else f"{self.fraction:.2f}"


@dataclass(slots=True)
class HandlerRun:
    """One attempt of a unit. It fills while the handler runs."""

    result: Any = None
    """As a client reads it: JSON values, also where the handler returned a model."""
    progress: list[Progress] = field(default_factory=list)
    """Every report in order. A consumer writes at most ten a second, and the last one always."""
    outputs: list[str] = field(default_factory=list)
    """Every piece of output in order."""
    checkpoints: list[Any] = field(default_factory=list)
    """Everything given to `ctx.checkpoint`, as the next attempt would get it."""
    usage: dict[str, float] = field(default_factory=dict)
    """Counters, raised by `ctx.count`."""
    interrupted: bool = False
    """It ended because it was asked to, without a result. A consumer would hand the unit back, uncharged."""
    error: BaseException | None = None
    """What it raised, for one input of a batch and for a shard. Other runners raise it."""

    @property
    def output(self) -> str:
        """All output in one, as watchers join it."""
        return "".join(self.outputs)

    @property
    def checkpoint(self) -> Any:
        """The last checkpoint: give it to the next attempt as `restored`. None if there is none."""
        return self.checkpoints[-1] if self.checkpoints else None


@dataclass(slots=True)
class BatchRun:
    """One call of a batch handler."""

    runs: list[HandlerRun]
    """One for each input, in order: an input that does not fit the model has InputRefused for its error."""
    usage: dict[str, float] = field(default_factory=dict)
    """Counters of the call as a whole."""
    interrupted: bool = False

    @property
    def results(self) -> list[Any]:
        """The result of each input, or its exception."""
        return [run.result if run.error is None else run.error for run in self.runs]


@dataclass(slots=True)
class ShardRun:
    """One shard: what was planned, and each attempt of it."""

    index: int
    shard: dict[str, Any]
    attempts: list[HandlerRun] = field(default_factory=list)
    """None at all if the test left it out (`missing`)."""

    @property
    def completed(self) -> bool:
        """Whether it has a part."""
        return bool(self.attempts) and self.attempts[-1].error is None

    @property
    def part(self) -> Any:
        """What `run_shard` returned; None without a part."""
        return self.attempts[-1].result if self.completed else None

    @property
    def error(self) -> BaseException | None:
        """What its last attempt raised."""
        return self.attempts[-1].error if self.attempts else None


@dataclass(slots=True)
class ShardedRun:
    """A task in parts: its plan, its shards in plan order, its merge."""

    plan: HandlerRun
    shards: list[ShardRun]
    merge: HandlerRun

    @property
    def result(self) -> Any:
        """What the task's result is: the merge's."""
        return self.merge.result

    @property
    def parts(self) -> list[Any]:
        """What `merge` was given: the parts of the completed shards in plan order."""
        return [shard.part for shard in self.shards if shard.completed]
