"""What a KEDA trigger may say, what follows from the figures, and when it is looked at. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_core.errors import DatabaseUnavailable, InvalidFields, ServerLimit
from headrace_core.tasks.scaling import QueueWork
from status.activity import Activity, Observer
from status.limits import ScalingLimits
from status.trigger import KEDAS, METRICS, OLDEST_AGE, WORK, Trigger, parse
from tests.fixtures.waiting import eventually

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=64)
NEVER = 3600.0


# -- the metadata -----------------------------------------------------------------------------------------------------


def complaints(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    _, found = parse(metadata)
    return [(violation.field, violation.description) for violation in found]


def test_without_metadata_it_is_the_work_of_all_queues() -> None:
    assert parse({}) == (Trigger((), WORK, 64.0), [])
    assert parse({"queues": " ", "metric": "", "target": ""}) == (Trigger((), WORK, 64.0), [])
    assert parse({"metric": "oldest-age"}) == (Trigger((), OLDEST_AGE, 30.0), [])


def test_what_keda_keeps_for_itself_is_passed_over() -> None:
    assert parse({"scalerAddress": "headrace-status:50052", **dict.fromkeys(KEDAS, "x")}) == (Trigger(), [])


def test_a_value_may_come_from_an_environment() -> None:
    trigger, found = parse({"queuesFromEnv": "a,b", "targetFromEnv": "2"})
    assert (trigger.queues, trigger.target, found) == (("a", "b"), 2.0, [])
    assert [field for field, _ in complaints({"queues": "a", "queuesFromEnv": "b"})] == ["scalerMetadata.queues"]


@pytest.mark.parametrize(
    ("metadata", "field", "words"),
    [
        ({"queue": "a"}, "scalerMetadata.queue", "those of this scaler are queues, metric, target"),
        ({"Queues": "a"}, "scalerMetadata.Queues", "no such key"),
        ({"queues": "a,,b"}, "scalerMetadata.queues", "no name before or after a comma"),
        ({"queues": ","}, "scalerMetadata.queues", "leave the key out for all queues"),
        ({"queues": "a" * 16_385}, "scalerMetadata.queues", "16385 characters"),
        ({"metric": "backlog"}, "scalerMetadata.metric", '"backlog" is no metric; it is one of work, oldest-age'),
        ({"target": "0"}, "scalerMetadata.target", "no number above 0"),
        ({"target": "0.0001"}, "scalerMetadata.target", "3 decimals"),
        ({"target": "1e3"}, "scalerMetadata.target", '"1e3"'),
        ({"target": "1_000"}, "scalerMetadata.target", '"1_000"'),
        ({"target": "nan"}, "scalerMetadata.target", '"nan"'),
        ({"target": "-5"}, "scalerMetadata.target", '"-5"'),
        ({"target": "٣"}, "scalerMetadata.target", "no number"),
        ({f"k{n}": "" for n in range(33)}, "scalerMetadata", "33 keys; at most 32"),
    ],
)
def test_what_is_wrong_is_named(metadata: dict[str, str], field: str, words: str) -> None:
    ((found, said),) = complaints(metadata)
    assert found == field
    assert words in said


def test_everything_that_is_wrong_is_named_at_once() -> None:
    wrong = {"queue": "a", "queues": "a,", "metric": "age", "target": "many"}
    assert sorted(field for field, _ in complaints(wrong)) == [
        "scalerMetadata.metric",
        "scalerMetadata.queue",
        "scalerMetadata.queues",
        "scalerMetadata.target",
    ]


@given(
    st.lists(NAMES, max_size=8),
    st.sampled_from([*METRICS]),
    st.integers(1, 999_999_999_999),
    st.sampled_from(["", " "]),
)
def test_whatever_is_written_well_is_read_as_it_was_meant(
    queues: list[str], metric: str, thousandths: int, blank: str
) -> None:
    target = f"{thousandths // 1000}.{thousandths % 1000:03}"
    listed = f"{blank},{blank}".join(queues)
    trigger, found = parse({"queues": blank + listed, "metric": metric + blank, "target": blank + target})
    assert found == []
    assert trigger == Trigger(tuple(dict.fromkeys(queues)), METRICS[metric], thousandths / 1000)


@given(
    st.dictionaries(st.sampled_from(["queues", "metric", "target", "queuesFromEnv", "other"]) | st.text(), st.text())
)
def test_whatever_comes_is_a_trigger_that_can_be_used_or_complaints_that_can_be_sent(metadata: dict[str, str]) -> None:
    trigger, found = parse(metadata)
    for violation in found:
        assert violation.field.startswith("scalerMetadata")
        assert violation.description
    if not found:
        assert trigger.metric.key in METRICS
        assert 0.001 <= trigger.target < 1_000_000_000
        assert all(name and name == name.strip() and "," not in name for name in trigger.queues)


# -- what follows -----------------------------------------------------------------------------------------------------

FIGURES = {
    "a": QueueWork("a", waiting=3, held=2, oldest_age=7.0, processing=True),
    "b": QueueWork("b", waiting=1, oldest_age=2.0),
    "paused": QueueWork("paused", paused=True, waiting=50, held=1, oldest_age=99.0, processing=True),
    "between": QueueWork("between", processing=True),
    "idle": QueueWork("idle"),
}


@pytest.mark.parametrize(
    ("queues", "work", "age", "active"),
    [
        ("", 7.0, 7.0, True),
        ("a", 5.0, 7.0, True),
        ("a,b,a", 6.0, 7.0, True),
        ("b", 1.0, 2.0, True),
        ("paused", 1.0, 0.0, True),
        ("between", 0.0, 0.0, True),
        ("idle", 0.0, 0.0, False),
    ],
)
def test_the_metrics_of_the_queues_that_are_named(queues: str, work: float, age: float, active: bool) -> None:
    trigger, _ = parse({"queues": queues})
    oldest, _ = parse({"queues": queues, "metric": "oldest-age"})
    assert (trigger.value(FIGURES), oldest.value(FIGURES)) == (work, age)
    assert trigger.active({name: queue.active for name, queue in FIGURES.items()}) is active


def test_what_waits_in_a_paused_queue_needs_nobody() -> None:
    assert not QueueWork("q", paused=True, waiting=9).active
    assert QueueWork("q", paused=True, held=1, processing=True).active


# -- streams ----------------------------------------------------------------------------------------------------------


class Look:
    """What the database would say, and how often it was asked."""

    def __init__(self, **active: bool) -> None:
        self.active = active
        self.looks = 0
        self.away = False

    async def __call__(self) -> Mapping[str, bool]:
        self.looks += 1
        if self.away:
            raise DatabaseUnavailable("away")
        return dict(self.active)


@asynccontextmanager
async def looking(look: Look, /, **limits: Any) -> AsyncIterator[Activity]:
    activity = Activity(look, ScalingLimits(**({"look": NEVER, "gap": 0.001} | limits)))
    loop = asyncio.create_task(activity.run())
    yield activity
    loop.cancel()
    await asyncio.wait([loop])


async def following(changes: AsyncIterator[bool]) -> bool | None:
    """The next change; None at the end."""
    return await anext(changes, None)


async def soon(waiting: Any) -> Any:
    async with asyncio.timeout(5.0):
        return await waiting


def test_a_slow_reader_gets_the_latest_and_costs_nothing() -> None:
    async def body() -> None:
        observer = Observer(Trigger(("q",)))
        changes = observer.changes()
        observer.see({"q": False})
        assert await soon(anext(changes)) is False
        for _ in range(1000):
            observer.see({"q": True})
            observer.see({"q": False})
        observer.see({"q": True})
        assert await soon(anext(changes)) is True
        # It went back and forth since: to the reader nothing has changed.
        observer.see({"q": False})
        observer.see({"q": True})
        rest = asyncio.create_task(following(changes))
        observer.end()
        assert await soon(rest) is None

    asyncio.run(body())


async def test_nobody_looks_while_nobody_asks() -> None:
    look = Look(q=False)
    async with looking(look, look=0.001) as activity:
        activity.wake([])
        with activity.observe(Trigger()) as observer:
            await soon(anext(observer.changes()))
        before = look.looks
        await asyncio.sleep(0)
        looks_later = await settled(lambda: look.looks)
        assert looks_later <= before + 1  # one may have been under way


async def settled(figure: Callable[[], int]) -> int:
    """The figure when it has stayed the same for a while in which it had every chance to change."""
    last, same = figure(), 0

    async def calm() -> bool:
        nonlocal last, same
        now = figure()
        last, same = now, same + 1 if now == last else 0
        return same >= 5

    await eventually(calm)
    return last


async def test_a_wake_is_worth_a_look_only_while_somebody_is_idle() -> None:
    look = Look(q=False, other=True)
    async with looking(look) as activity:
        with activity.observe(Trigger(("q",))) as idle, activity.observe(Trigger(("other",))) as busy:
            changes = idle.changes()
            assert await soon(anext(changes)) is False
            assert await soon(anext(busy.changes())) is True
            look.active["q"] = True
            activity.wake([])
            assert await soon(anext(changes)) is True
            before = look.looks
            for _ in range(100):
                activity.wake([])
                await asyncio.sleep(0)
            assert await settled(lambda: look.looks) == before


async def test_wakes_by_the_thousand_are_few_looks() -> None:
    look = Look(q=False)
    async with looking(look, gap=NEVER, look=0.2) as activity:
        with activity.observe(Trigger(("q",))) as observer:
            changes = observer.changes()
            assert await soon(anext(changes)) is False
            for _ in range(1000):
                activity.wake([])
                await asyncio.sleep(0)
            assert look.looks <= 2


async def test_without_any_wake_the_clock_finds_out() -> None:
    look = Look(q=False)
    async with looking(look, look=0.01) as activity:
        with activity.observe(Trigger(("q",))) as observer:
            changes = observer.changes()
            assert await soon(anext(changes)) is False
            look.active["q"] = True
            assert await soon(anext(changes)) is True
            look.active["q"] = False
            assert await soon(anext(changes)) is False


async def test_while_postgres_is_away_nothing_is_said() -> None:
    look = Look(q=False)
    look.away = True
    async with looking(look, look=0.005) as activity:
        with activity.observe(Trigger(("nowhere",))) as wrong, activity.observe(Trigger(("q",))) as observer:
            first = asyncio.create_task(following(observer.changes()))
            await eventually(lambda: look.looks >= 3)
            assert not first.done()
            look.away = False
            assert await soon(first) is False
            with pytest.raises(InvalidFields, match="nowhere"):
                await soon(anext(wrong.changes()))


async def test_streams_are_bounded_and_a_place_is_given_back() -> None:
    async with looking(Look(q=False), max_streams=1) as activity:
        with activity.observe(Trigger()), pytest.raises(ServerLimit, match="1 streams"), activity.observe(Trigger()):
            pass
        with activity.observe(Trigger()) as again:
            assert await soon(anext(again.changes())) is False


async def test_the_drain_ends_every_stream_also_one_that_comes_late() -> None:
    async with looking(Look(q=False)) as activity:
        with activity.observe(Trigger()) as observer:
            changes = observer.changes()
            await soon(anext(changes))
            activity.drain()
            assert await soon(following(changes)) is None
        with activity.observe(Trigger()) as late:
            assert await soon(following(late.changes())) is None
