"""Requests are refused with every violation at once, and otherwise become what the rest works with."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import status_pb2, task_pb2
from headrace_core.errors import InvalidFields
from headrace_core.tasks.model import TaskState
from headrace_core.tasks.reading import TaskFilter
from status import filters

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def fields(refused: pytest.ExceptionInfo[InvalidFields]) -> list[str]:
    return [violation.field for violation in refused.value.violations]


@pytest.mark.parametrize("text", ["", "x", f"{{{ID}}}", ID.replace("-", ""), f"urn:uuid:{ID}", ID + "0"])
def test_an_id_is_a_uuid_in_its_canonical_form(text: str) -> None:
    with pytest.raises(InvalidFields) as refused:
        filters.task_id(text)
    assert fields(refused) == ["id"]


def test_ids_in_capitals_are_the_same_ids() -> None:
    assert filters.task_id(ID.upper()) == UUID(ID)


def test_an_empty_filter_matches_everything() -> None:
    assert filters.task_filter(status_pb2.TaskFilter()) == TaskFilter()


def test_a_filter_becomes_ours() -> None:
    message = status_pb2.TaskFilter(
        namespace="n",
        kind="k",
        queue="q",
        states=[task_pb2.TASK_STATE_PENDING, task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_PENDING],
        labels={"b": "2", "a": "1"},
        created_after=Timestamp(seconds=1),
        created_before=Timestamp(seconds=2),
    )
    assert filters.task_filter(message) == TaskFilter(
        "n",
        "k",
        "q",
        (TaskState.FAILED, TaskState.PENDING),
        (("a", "1"), ("b", "2")),
        datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC),
        datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
    )


def test_unspecified_among_the_states_means_any() -> None:
    message = status_pb2.TaskFilter(states=[task_pb2.TASK_STATE_UNSPECIFIED, task_pb2.TASK_STATE_FAILED])
    assert filters.task_filter(message).states == ()


def test_every_violation_is_said_at_once() -> None:
    message = status_pb2.TaskFilter(
        namespace="x" * 257,
        kind="a\0b",
        labels={"k": "v" * 300},
        created_after=Timestamp(seconds=-(2**62)),
    )
    message.states.append(99)  # type: ignore[arg-type]
    with pytest.raises(InvalidFields) as refused:
        filters.task_filter(message)
    assert set(fields(refused)) == {
        "filter.namespace",
        "filter.kind",
        "filter.labels[k]",
        "filter.states",
        "filter.created_after",
    }


def test_the_canonical_form_does_not_depend_on_the_order_of_labels() -> None:
    one = status_pb2.TaskFilter(labels={"a": "1", "b": "2"})
    other = status_pb2.TaskFilter(labels={"b": "2", "a": "1"})
    assert filters.canonical(one) == filters.canonical(other)


def test_absent_and_zero_after_sequence_differ() -> None:
    assert filters.watch_one(status_pb2.WatchTaskRequest(id=ID)).after == {}
    assert filters.watch_one(status_pb2.WatchTaskRequest(id=ID, after_sequence=0)).after == {UUID(ID): 0}


def test_a_sequence_beyond_what_postgres_counts_to_is_refused() -> None:
    with pytest.raises(InvalidFields) as refused:
        filters.watch_one(status_pb2.WatchTaskRequest(id=ID, after_sequence=2**64 - 1))
    assert fields(refused) == ["after_sequence"]


def test_ids_or_a_filter_and_not_both() -> None:
    for request in (
        status_pb2.WatchTasksRequest(),
        status_pb2.WatchTasksRequest(ids=[ID], filter=status_pb2.TaskFilter()),
    ):
        with pytest.raises(InvalidFields) as refused:
            filters.watch_many(request)
        assert fields(refused) == ["ids"]


def test_ended_since_belongs_to_a_filter() -> None:
    moment = Timestamp(seconds=1)
    with pytest.raises(InvalidFields) as refused:
        filters.watch_many(status_pb2.WatchTasksRequest(ids=[ID], ended_since=moment))
    assert fields(refused) == ["ended_since"]
    request = status_pb2.WatchTasksRequest(filter=status_pb2.TaskFilter(), ended_since=moment)
    assert filters.watch_many(request).ended_since == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    request.ended_since.seconds = -(2**62)
    with pytest.raises(InvalidFields) as refused:
        filters.watch_many(request)
    assert fields(refused) == ["ended_since"]


def test_repeated_ids_are_watched_once() -> None:
    assert filters.watch_many(status_pb2.WatchTasksRequest(ids=[ID, ID.upper()])).task_ids == (UUID(ID),)


def test_too_many_ids_are_refused() -> None:
    ids = [str(UUID(int=number)) for number in range(filters.MAX_WATCHED_IDS + 1)]
    with pytest.raises(InvalidFields) as refused:
        filters.watch_many(status_pb2.WatchTasksRequest(ids=ids))
    assert "ids" in fields(refused)


def test_a_watch_does_not_filter_by_state() -> None:
    message = status_pb2.TaskFilter(states=[task_pb2.TASK_STATE_FAILED])
    with pytest.raises(InvalidFields) as refused:
        filters.watch_many(status_pb2.WatchTasksRequest(filter=message))
    assert fields(refused) == ["filter.states"]


def test_resuming_what_is_not_watched_is_refused() -> None:
    other = str(UUID(int=7))
    with pytest.raises(InvalidFields) as refused:
        filters.watch_many(status_pb2.WatchTasksRequest(ids=[ID], after_sequences={other: 3}))
    assert fields(refused) == [f"after_sequences[{other}]"]
    resumed = filters.watch_many(
        status_pb2.WatchTasksRequest(filter=status_pb2.TaskFilter(), after_sequences={other: 3})
    )
    assert resumed.after == {UUID(other): 3}
