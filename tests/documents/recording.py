"""The smallest context that a handler can be given: it records what the handler reports."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from consumer.builtin import Analyze
from consumer.builtin.ai.models import AnalyzeInput
from headrace.handlers import Log
from headrace.testing import run_sharded


class SilentLog:
    def debug(self, event: str, **fields: Any) -> None: ...
    def info(self, event: str, **fields: Any) -> None: ...
    def warning(self, event: str, **fields: Any) -> None: ...
    def error(self, event: str, **fields: Any) -> None: ...


@dataclass
class RecordingContext:
    task_id: str = "0190d1a0-0000-7000-8000-000000000000"
    attempt: int = 1
    epoch: int = 1
    deadline: datetime | None = None
    restored: Any = None
    shard_index: int | None = None
    log: Log = field(default_factory=SilentLog)
    usage: dict[str, float] = field(default_factory=dict)
    fractions: list[float] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    some_output: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self, name: str, amount: float = 1) -> None:
        self.usage[name] = self.usage.get(name, 0) + amount

    async def progress(self, fraction: float, message: str = "") -> None:
        self.fractions.append(fraction)

    async def output(self, text: str) -> None:
        self.outputs.append(text)
        self.some_output.set()

    async def checkpoint(self, data: Any) -> None: ...


async def analysed(handler: Analyze, input: AnalyzeInput) -> dict[str, Any]:
    """The result of the whole task: plan, every shard, merge; each value through JSON, as the store hands it on."""
    result: dict[str, Any] = (await run_sharded(handler, input)).result
    return result
