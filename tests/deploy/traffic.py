"""Clients that know nothing of roll-outs: they submit, watch and read through the SDK, and note what they see."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from headrace import Client
from headrace.v1 import event_pb2, task_pb2
from headrace.watch import is_terminal

EVERY_SECONDS = 0.05
LONG_SECONDS = 4.0
LABELS = {"traffic": "roll-out"}
ENOUGH_SECONDS = 90.0


class Traffic:
    """Tasks of several kinds, steadily, each watched from its submit to its end, and all of them by label besides."""

    def __init__(self, client: Client, ledger: Path) -> None:
        self.shown: dict[str, list[event_pb2.TaskEvent]] = {}
        self.ends_by_label: Counter[str] = Counter()
        self._client = client
        self._work = _mixed(ledger)
        self._enough = asyncio.Event()
        self._watches: list[asyncio.Task[None]] = []
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        self._running = [loop.create_task(self._submit(), name="traffic"), loop.create_task(self._watch_by_label())]

    async def finish(self) -> None:
        """Submit no more and wait until every watch has ended. Raises what any client met."""
        self._enough.set()
        submitting, by_label = self._running
        async with asyncio.timeout(ENOUGH_SECONDS):
            await submitting
            await asyncio.gather(*self._watches)
            while len(self.ends_by_label) < len(self.shown) and not by_label.done():
                await asyncio.wait({by_label}, timeout=0.1)
        by_label.cancel()
        await asyncio.wait({by_label})
        if not by_label.cancelled():
            by_label.result()

    async def close(self) -> None:
        """End everything, whatever state it is in. Idempotent."""
        tasks = [*self._running, *self._watches]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def until_submitted(self, number: int) -> None:
        """Wait until so many tasks are under way or done."""
        while len(self.shown) < number:
            submitting = self._running[0]
            await asyncio.wait({submitting}, timeout=EVERY_SECONDS)
            if submitting.done():
                submitting.result()

    async def read_all(self) -> list[task_pb2.Task]:
        """Every submitted task in full."""
        return [await self._client.get(task_id, full=True) for task_id in self.shown]

    async def _submit(self) -> None:
        for kind, payload in self._work:
            task = await self._client.submit(kind, payload, labels=LABELS)
            self.shown[task.id] = []
            self._watches.append(asyncio.create_task(self._watch(task.id), name=f"watch {task.id}"))
            try:
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._enough.wait()
                return
            except TimeoutError:
                continue  # not enough yet: the next one

    async def _watch(self, task_id: str) -> None:
        async with aclosing(self._client.watch(task_id)) as events:
            async for event in events:
                self.shown[task_id].append(event)

    async def _watch_by_label(self) -> None:
        async with aclosing(self._client.watch_many(labels=LABELS)) as events:
            async for event in events:
                if is_terminal(event):
                    self.ends_by_label[event.task_id] += 1


def _mixed(ledger: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mostly short tasks; some of several seconds, which a roll-out meets half done; some in shards."""
    for number in itertools.count():
        if number % 10 == 3:
            yield "long-work", {"seconds": LONG_SECONDS, "ledger": str(ledger)}
        elif number % 10 == 7:
            yield "count-words", {"texts": ["a task in shards", "is", "its shards"]}
        else:
            yield "echo", {"number": number}
