"""Figures are as fresh as they are cheap, and nobody waits twice for the same reading."""

import asyncio
from datetime import datetime

import pytest

from headrace_core.errors import DatabaseUnavailable, UnknownQueue
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks import figures
from headrace_core.tasks.figures import Figures
from headrace_core.tasks.queues import QueueFigures


class Table:
    """What is counted; each reading takes so many seconds of a clock that only it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now = 1000.0
        self.cost = cost
        self.readings = 0
        self.hold: asyncio.Event | None = None
        self.broken = False
        monkeypatch.setattr(figures, "_now", lambda: self.now)

    async def read(self) -> list[QueueFigures]:
        self.readings += 1
        number = self.readings
        if self.hold is not None:
            await self.hold.wait()
        self.now += self.cost
        if self.broken:
            raise DatabaseUnavailable("away")
        paused: datetime | None = None
        return [QueueFigures(QueueSettings(name="q"), paused, number, 0, 0, 0, 0.0, 0.0, 0.0)]


async def test_what_is_cheap_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, cost=0.002)
    found = Figures(table.read)
    assert (await found.of("q")).backlog == 1
    assert (await found.of("q")).backlog == 1
    table.now += 0.05
    assert (await found.of("q")).backlog == 2


async def test_of_what_is_dear_the_last_reading_serves_while_the_next_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Table(monkeypatch, cost=0.2)
    found = Figures(table.read)
    assert (await found.of("q")).backlog == 1
    table.now += 5.0
    table.hold = asyncio.Event()
    assert [(await found.of("q")).backlog for _ in range(3)] == [1, 1, 1]
    await asyncio.sleep(0)
    assert table.readings == 2
    waiting = asyncio.create_task(found.of("q", fresh=True))
    table.hold.set()
    assert (await waiting).backlog == 3  # the one under way began before the change
    await found.close()


async def test_nothing_older_than_the_limit_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, cost=1.0)
    found = Figures(table.read)
    await found.all()
    table.now += figures.OLDEST_SECONDS + 1
    assert (await found.of("q")).backlog == 2
    table.now += figures.OLDEST_SECONDS + 1
    table.broken = True
    with pytest.raises(DatabaseUnavailable):
        await found.all()


async def test_a_queue_that_was_not_there_is_looked_for_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(monkeypatch, cost=0.2)
    found = Figures(table.read)
    with pytest.raises(UnknownQueue):
        await found.of("missing")
    assert table.readings == 2
