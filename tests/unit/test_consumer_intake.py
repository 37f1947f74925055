"""The pure parts of the intake: who is next, how many may start, which way work comes in."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.intake.limits import Slots, TokenBucket, Turnover, calls_of, cores, slots_of
from consumer.intake.mode import ModeSwitch
from consumer.intake.priority import RESUME, WEIGHTS, PriorityBuffer
from consumer.registry import collect
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.message import Malformed, parse

LEVELS = (RESUME, *WEIGHTS)


@given(st.lists(st.sampled_from(LEVELS), max_size=200), st.integers(1, 20))
def test_everything_comes_out_once_resume_first_and_each_level_in_order(puts: list[str], batch: int) -> None:
    buffer: PriorityBuffer[tuple[str, int]] = PriorityBuffer()
    for number, level in enumerate(puts):
        buffer.put(level, (level, number))
    taken = []
    while len(buffer):
        taken += buffer.take(batch)
    assert sorted(number for _, (_, number) in taken) == list(range(len(puts)))
    resumed = puts.count(RESUME)
    assert all(level == RESUME for level, _ in taken[:resumed])
    for level in LEVELS:
        numbers = [number for at, (_, number) in taken if at == level]
        assert numbers == sorted(numbers)


@given(st.integers(1, 10), st.data())
def test_no_level_starves_and_shares_hold_while_all_are_full(rounds: int, data: st.DataObject) -> None:
    buffer: PriorityBuffer[int] = PriorityBuffer()
    for level in WEIGHTS:
        for number in range(21 * (rounds + 1)):
            buffer.put(level, number)
    levels: list[str] = []
    while len(levels) < 21 * rounds:
        batch = data.draw(st.integers(1, 21 * rounds - len(levels)))
        levels += [level for level, _ in buffer.take(batch)]
    for level, weight in WEIGHTS.items():
        assert abs(levels.count(level) - weight * rounds) <= 1


@given(st.integers(0, 500))
def test_a_level_that_was_silent_has_earned_no_credit(silence: int) -> None:
    buffer: PriorityBuffer[int] = PriorityBuffer()
    for number in range(silence):
        buffer.put("high", number)
    buffer.take(silence)
    for number in range(42):
        buffer.put("high", number)
        buffer.put("low", number)
    levels = [level for level, _ in buffer.take(34)]
    assert levels.count("low") <= 3


def test_put_back_restores_the_order() -> None:
    buffer: PriorityBuffer[int] = PriorityBuffer()
    for number in range(5):
        buffer.put("normal", number)
    taken = buffer.take(3)
    for level, item in reversed(taken):
        buffer.put_back(level, item)
    assert [item for _, item in buffer.take(5)] == [0, 1, 2, 3, 4]


def test_a_token_bucket_gives_a_seconds_worth_at_most() -> None:
    bucket = TokenBucket(5.0, now=0.0)
    assert bucket.available(0.0) == 1
    assert bucket.available(100.0) == 5
    bucket.take(5)
    assert bucket.available(100.0) == 0
    assert bucket.until_next() == pytest.approx(0.2)
    assert bucket.available(100.4) == 2


@given(st.floats(0.5, 100), st.lists(st.floats(0, 2), max_size=50))
def test_a_token_bucket_never_gives_more_than_its_rate(rate: float, pauses: list[float]) -> None:
    now, given_out = 0.0, 0
    bucket = TokenBucket(rate, now)
    for pause in pauses:
        now += pause
        available = bucket.available(now)
        bucket.take(int(available))
        given_out += int(available)
    assert given_out <= rate * now + 1 + 1e-6


def test_no_rate_is_no_limit() -> None:
    bucket = TokenBucket(0.0, now=0.0)
    bucket.take(1000)
    assert math.isinf(bucket.available(0.0))


def test_slots_by_execution() -> None:
    queue = QueueSettings(name="default")
    found = collect(["tests.handlers.sample_handlers"], built_in=False)
    by_kind = found.handlers
    assert slots_of(queue, [by_kind["double"]]) == 64
    assert slots_of(queue, [by_kind["plain-thread"]]) == 8
    assert slots_of(queue, [by_kind["plain-process"]]) == cores()
    assert slots_of(queue, [by_kind["double"], by_kind["plain-thread"]]) == 72
    assert slots_of(queue, [by_kind["batch-thread"]]) == 8 * 16
    assert slots_of(queue.model_copy(update={"max_concurrency": 3}), list(by_kind.values())) == 3
    assert calls_of(queue.model_copy(update={"max_concurrency": 3}), "process") == 3


def test_more_slots_than_are_free_are_a_defect() -> None:
    slots = Slots(2, lambda: None)
    slots.take(2)
    with pytest.raises(ValueError, match="1 slots were taken and 0 were free"):
        slots.take(1)


def test_the_broker_is_given_up_after_a_second_and_trusted_after_a_delivery() -> None:
    switch = ModeSwitch(broker=True)
    steps: list[tuple[Callable[[], None], str]] = [
        (lambda: switch.look(10.0, healthy=False), "broker"),
        (lambda: switch.look(10.9, healthy=False), "broker"),
        (lambda: switch.look(11.0, healthy=False), "fallback"),
        (switch.delivered, "fallback"),  # a late message of the old connection proves nothing
        (lambda: switch.look(12.0, healthy=True), "fallback"),  # a connection is no round trip
        (switch.delivered, "broker"),
    ]
    for step, mode in steps:
        step()
        assert switch.mode == mode


def test_an_answer_that_does_not_come_was_missing_since_the_question() -> None:
    switch = ModeSwitch(broker=True)
    switch.look(10.0, healthy=False)  # asked at 10, given up at 11.5
    switch.wait(11.5)
    assert switch.mode == "fallback"


def test_a_short_hiccup_changes_nothing() -> None:
    switch = ModeSwitch(broker=True)
    for second in range(10):
        switch.look(second, healthy=False)
        switch.look(second + 0.5, healthy=True)
    assert switch.mode == "broker"


def test_without_a_broker_the_mode_stays() -> None:
    switch = ModeSwitch(broker=False)
    switch.delivered()
    assert switch.mode == "postgres"


def test_parse_takes_ids_and_probes() -> None:
    body = b'{"task":"6a0e2f0c-30f5-4a3c-9a40-6a6a3f3b4f10","unit":-2,"dispatch":7}'
    delivered = parse(body)
    assert delivered is not None
    assert (delivered.unit_id.unit, delivered.dispatch) == (-2, 7)
    assert parse(b'{"probe": "x"}') is None


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"null", b"[]", b"{}", b'"x"', b"7", b'{"task": 1, "unit": 0, "dispatch": 1}']
)
def test_parse_refuses_the_rest(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse(body)


@given(st.binary(max_size=64))
def test_parse_raises_nothing_else(body: bytes) -> None:
    try:
        parse(body)
    except Malformed:
        return


def test_turnover_is_nothing_for_long_tasks_and_bounded_for_short_ones() -> None:
    turnover = Turnover(64)
    assert turnover.prefetch(0.0, 0) == 0
    assert turnover.prefetch(10.0, 50) == 0, "five a second: half a slot in a tenth of one"
    assert turnover.prefetch(10.05, 500) == 0, "judged once a tenth of a second"
    assert turnover.prefetch(10.125, 90) == 32
    assert turnover.prefetch(10.25, 8000) == 64
    assert turnover.prefetch(11.5, 8000) == 0
