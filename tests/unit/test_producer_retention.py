"""How retention paces itself, without a database."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks import retention
from headrace_core.tasks.retention import Removed, TablesLocked
from headrace_core.telemetry import metrics
from producer.retention import Retention
from tests.fixtures.waiting import eventually

NOBODY: Any = None
"""No database: what would ask it is replaced."""


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: object, **__: object) -> int:
        return 0

    monkeypatch.setattr(retention, "remove_letters", none)


def scripted(monkeypatch: pytest.MonkeyPatch, answers: list[Removed | Exception], seconds: float = 0.0) -> list[int]:
    """The limits that each step was asked with; each answers the next of `answers`, the last one for ever."""
    limits: list[int] = []

    async def step(_: object, __: object, *, limit: int, after: object = None) -> Removed:
        limits.append(limit)
        await asyncio.sleep(seconds)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(retention, "remove_tasks", step)
    return limits


async def test_steps_take_their_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [Removed(1, more=True), Removed(1, more=True), Removed(1)], seconds=0.02)
    started = time.monotonic()
    await Retention(NOBODY, days=30, events_days=0, share=0.2).remove_due()
    assert time.monotonic() - started >= 3 * 0.02 + 2 * 0.08


async def test_what_was_too_much_is_tried_in_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producer.retention.ROUND_SECONDS", 0.0)
    away = DatabaseUnavailable("too slow")
    answers: list[Removed | Exception] = [away, away, TablesLocked("x"), Removed(1, more=True), Removed(1, more=True)]
    limits = scripted(monkeypatch, [*answers, Removed()])
    running = asyncio.create_task(Retention(NOBODY, days=30, events_days=0, share=1.0).run())
    await eventually(lambda: len(limits) >= 7)
    running.cancel()
    await asyncio.wait([running])
    assert limits[:7] == [500, 125, 31, 31, 62, 124, 248]


async def test_how_far_it_is_behind_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    async def step(*_: object, **__: object) -> Removed:
        seen.append(metrics.REGISTRY.get_sample_value("headrace_retention_overdue_seconds", {"what": "tasks"}) or 0.0)
        ended_at = datetime.now(UTC) - timedelta(days=32)
        return Removed(1, more=True, ended_at=ended_at) if len(seen) == 1 else Removed(1)

    monkeypatch.setattr(retention, "remove_tasks", step)
    await Retention(NOBODY, days=30, events_days=0, share=1.0).remove_due()
    assert seen[1] == pytest.approx(2 * 86_400, abs=60)
    assert metrics.REGISTRY.get_sample_value("headrace_retention_overdue_seconds", {"what": "tasks"}) == 0.0
