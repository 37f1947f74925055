"""What a topic keeps: each event once, for those who have not taken it, within bounds; and when a task has ended."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.v1 import event_pb2, task_pb2
from headrace.v1.event_pb2 import TaskEvent
from status.topic import Topic
from status.watcher import Track, Watcher

TASK = UUID(int=1)
PLENTY = {"max_events": 1_000, "max_bytes": 1_000_000}


def output(sequence: int, size: int = 1) -> TaskEvent:
    return TaskEvent(sequence=sequence, output=event_pb2.OutputChunk(text="x" * size))


def state(sequence: int, *, terminal: bool = False, shard: bool = False) -> TaskEvent:
    unit = task_pb2.Unit(type=task_pb2.UNIT_TYPE_SHARD if shard else task_pb2.UNIT_TYPE_TASK)
    return TaskEvent(sequence=sequence, unit=unit, state_change=event_pb2.StateChange(terminal=terminal))


def topic_at(cursor: int, *positions: int) -> Topic:
    topic = Topic(TASK, cursor, terminal=False)
    for position in positions:
        topic.tracks[Track(Watcher(10), topic, position)] = None
    return topic


def numbers(events: list[TaskEvent] | None) -> list[int] | None:
    return None if events is None else [event.sequence for event in events]


def test_each_takes_from_its_own_position() -> None:
    topic = topic_at(3, 3, 5)
    topic.append([output(4), output(5), output(6)], **PLENTY)
    assert numbers(topic.take(3)) == [4, 5, 6]
    assert numbers(topic.take(5)) == [6]
    assert topic.take(6) == []
    assert topic.take(9) == []
    assert topic.take(2) is None


def test_what_everybody_has_is_forgotten() -> None:
    topic = topic_at(0, 0)
    topic.append([output(1), output(2)], **PLENTY)
    (track,) = topic.tracks
    track.position = 1
    topic.forget_taken()
    assert (len(topic), numbers(topic.take(1))) == (1, [2])
    track.position = 2
    topic.forget_taken()
    assert (len(topic), topic.kept_bytes) == (0, 0)


def test_the_oldest_go_when_there_are_too_many() -> None:
    topic = topic_at(0, 0)
    topic.append([output(number) for number in range(1, 21)], max_events=5, max_bytes=1_000_000)
    assert topic.take(0) is None
    assert numbers(topic.take(15)) == [16, 17, 18, 19, 20]


@given(st.lists(st.integers(0, 400), max_size=40), st.integers(1, 10), st.integers(1, 2_000))
def test_the_bounds_hold(sizes: list[int], max_events: int, max_bytes: int) -> None:
    topic = topic_at(0, 0)
    for number, size in enumerate(sizes, start=1):
        topic.append([output(number, size)], max_events=max_events, max_bytes=max_bytes)
        kept = topic.take(number - len(topic))
        assert kept is not None
        assert len(topic) <= max_events
        assert topic.kept_bytes == sum(event.ByteSize() for event in kept) <= max_bytes


def test_a_hole_in_the_history_makes_those_before_it_late() -> None:
    topic = topic_at(3, 3)
    topic.append([output(4), output(8)], **PLENTY)
    assert topic.take(3) is None
    assert topic.take(4) is None
    assert numbers(topic.take(7)) == [8]


def test_a_task_has_ended_at_its_last_event_if_that_left_it_terminal() -> None:
    topic = topic_at(0, 0)
    topic.append([output(1), state(2, terminal=True)], **PLENTY)
    assert topic.ended_at(2)
    assert not topic.ended_at(1)
    assert not topic.ended_at(3)


def test_a_redrive_after_the_terminal_event_goes_on() -> None:
    topic = topic_at(0, 0)
    topic.append([state(1, terminal=True), state(2)], **PLENTY)
    assert not topic.ended_at(1)
    assert not topic.ended_at(2)


def test_a_shards_state_ends_nothing_and_begins_nothing() -> None:
    topic = topic_at(0, 0)
    topic.append([state(1, shard=True)], **PLENTY)
    assert not topic.ended_at(1)
    topic.append([state(2, terminal=True, shard=True), state(3, shard=True)], **PLENTY)
    assert topic.ended_at(3)


@pytest.mark.parametrize("doubt", ["heard", "more"])
def test_nothing_has_ended_while_more_may_follow(doubt: str) -> None:
    topic = topic_at(0, 0)
    topic.append([state(1, terminal=True)], **PLENTY)
    setattr(topic, doubt, 2)
    assert not topic.ended_at(1)
