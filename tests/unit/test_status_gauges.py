"""The gauges of the queues: renewed, and not shown when they are no longer true. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from headrace_core.errors import DatabaseUnavailable
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks import figures
from headrace_core.tasks.figures import Figures, SharedReading
from headrace_core.tasks.queues import QueueFigures
from headrace_core.tasks.scaling import QueueWork
from headrace_core.telemetry import metrics
from status.gauges import QueueGauges
from status.limits import ScalingLimits
from tests.fixtures.waiting import eventually

NEVER = 3600.0


async def test_who_decides_by_a_reading_waits_for_it_however_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    now, readings = [1000.0], [0]
    monkeypatch.setattr(figures, "_now", lambda: now[0])

    async def read() -> int:
        readings[0] += 1
        now[0] += 0.1
        return readings[0]

    shared = SharedReading(read, wait=True)
    assert (await shared.latest(), shared.last) == (1, 1)
    now[0] += 1.9
    assert await shared.latest() == 1
    now[0] += 0.2
    assert await shared.latest() == 2


def shown(gauge: str, queue: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(f"headrace_queue_{gauge}", {"queue": queue})


class Queues:
    """The figures behind the gauges."""

    def __init__(self) -> None:
        self.names = ["g1", "g2"]
        self.away = False

    async def figures(self) -> list[QueueFigures]:
        if self.away:
            raise DatabaseUnavailable("away")
        return [QueueFigures(QueueSettings(name=name), None, 30, 4, 1, 2, 9.5, 0.0, 0.0) for name in self.names]

    async def work(self) -> dict[str, QueueWork]:
        return {"g1": QueueWork("g1", waiting=30, held=7)}


@asynccontextmanager
async def gauged(queues: Queues, last: float) -> AsyncIterator[None]:
    limits = ScalingLimits(gauges=0.005, gauges_last=last)
    gauges = QueueGauges(Figures(queues.figures), SharedReading(queues.work, wait=True), limits)
    loop = asyncio.create_task(gauges.run())
    yield
    loop.cancel()
    await asyncio.wait([loop])


async def test_the_gauges_of_a_queue_that_is_gone_go_too() -> None:
    queues = Queues()
    async with gauged(queues, NEVER):
        await eventually(lambda: shown("work", "g1"))
        found = {name: shown(name, "g1") for name in ("backlog", "in_flight", "work", "delayed", "dead_letters")}
        assert found == {"backlog": 30, "in_flight": 7, "work": 37, "delayed": 4, "dead_letters": 2}
        assert shown("oldest_age_seconds", "g1") == 9.5
        assert (shown("work", "g2"), shown("in_flight", "g2")) == (0, 0)
        queues.names = ["g1"]
        await eventually(lambda: shown("backlog", "g2") is None)
        assert shown("backlog", "g1") == 30
    assert shown("backlog", "g1") is None  # a service that has stopped shows nothing


async def test_gauges_that_cannot_be_renewed_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "OLDEST_SECONDS", 0.0)
    queues = Queues()
    async with gauged(queues, 0.05):
        await eventually(lambda: shown("backlog", "g1") == 30)
        queues.away = True
        await eventually(lambda: shown("backlog", "g1") is None, within=5.0)
        queues.away = False
        await eventually(lambda: shown("backlog", "g1") == 30)


async def test_a_short_outage_leaves_the_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "OLDEST_SECONDS", 0.0)
    queues = Queues()
    async with gauged(queues, NEVER):
        await eventually(lambda: shown("backlog", "g1") == 30)
        queues.away = True
        tries = [0]

        async def tried() -> bool:
            tries[0] += 1
            return tries[0] > 5

        await eventually(tried)
        assert shown("backlog", "g1") == 30
