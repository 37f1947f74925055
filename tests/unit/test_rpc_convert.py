"""Records of the database as messages of the API."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from headrace.v1 import error_pb2, status_pb2, task_pb2
from headrace_core.rpc.convert import (
    attempt_message,
    event_message,
    full_task_message,
    reason_number,
    shard_message,
    state_number,
    task_message,
    timestamp,
    unit_message,
)
from headrace_core.tasks.model import MERGE, TASK, TaskRecord, TaskState
from headrace_core.tasks.reading import AttemptRecord, EventRecord, FullTask, ShardRecord

CREATED = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
TASK_ID = UUID("019312ab-0000-7000-8000-000000000001")
ERROR = json.dumps({"reason": "TIMEOUT", "type": "TimeoutError", "message": "太慢"}).encode()


def record(**changes: Any) -> TaskRecord:
    task = TaskRecord(
        id=TASK_ID, namespace="shop", kind="resize", queue="images", priority=3, state=TaskState.PENDING, reason="",
        generation=1, sequence=4, labels={"order": "7"}, idempotency_key=None, attempt=2, failures=1, crashes=0,
        interruptions=5, max_attempts=3, max_crashes=4, fraction=0.25, message="half of a half", done_shards=0,
        total_shards=None, created_at=CREATED, due_at=CREATED, deadline=None, started_at=None, ended_at=None,
        updated_at=CREATED, worker="", error=None,
    )  # fmt: skip
    return task._replace(**changes)


def test_a_task_in_its_basic_view() -> None:
    task = task_message(record(idempotency_key="order-7", error=ERROR, reason="HANDLER_ERROR", worker="host/1"))
    assert (task.id, task.namespace, task.kind, task.queue) == (str(TASK_ID), "shop", "resize", "images")
    assert (task.priority, task.state) == (task_pb2.PRIORITY_HIGH, task_pb2.TASK_STATE_PENDING)
    assert (task.reason, task.idempotency_key, dict(task.labels)) == (45, "order-7", {"order": "7"})
    assert (task.attempts, task.budgets.failures, task.budgets.max_crashes) == (2, 1, 4)
    assert (task.progress.fraction, task.progress.message) == (0.25, "half of a half")
    assert (task.error.reason, task.error.message) == (error_pb2.REASON_TIMEOUT, "太慢")
    assert task.create_time.ToDatetime(UTC) == CREATED
    for absent in ("deadline", "start_time", "end_time", "result_json", "payload_json", "result"):
        assert not task.HasField(absent)


def test_what_is_absent_stays_absent() -> None:
    task = task_message(record())
    assert not task.HasField("idempotency_key")
    assert not task.HasField("error")
    assert task.reason == error_pb2.REASON_UNSPECIFIED


@pytest.mark.parametrize(
    ("state", "later", "shown"), [("PENDING", 60, True), ("PENDING", 0, False), ("PROCESSING", 60, False)]
)
def test_due_time_only_while_the_task_waits_for_it(state: str, later: int, shown: bool) -> None:
    due = CREATED + timedelta(seconds=later)
    assert task_message(record(state=TaskState(state), due_at=due)).HasField("due_time") is shown


def test_the_progress_of_a_sharded_task_is_its_shards() -> None:
    progress = task_message(record(total_shards=4, done_shards=1, fraction=0.9)).progress
    assert (progress.fraction, progress.done_shards, progress.total_shards) == (0.25, 1, 4)
    assert task_message(record(total_shards=0, fraction=0.0)).progress.fraction == 0.0
    assert task_message(record(state=TaskState.COMPLETED, fraction=0.4)).progress.fraction == 1.0


def test_the_full_view_has_everything_and_arrives_whole_at_the_deepest_allowed_nesting() -> None:
    found: Any = 9007199254740993
    for level in range(32):
        found = {"值": found, "n": None, "b": True} if level % 2 else [found, 0.5, "x", {}, []]
    result = json.dumps(found).encode()
    attempt = AttemptRecord("PLAN", None, 1, 1, 7, "host/1", CREATED, None, "PROCESSING", None)
    shard = ShardRecord(3, TaskState.FAILED, "CRASHED", 2, 0, 3, 0, 3, 3, "host/2", CREATED, CREATED, ERROR)
    full = FullTask(record(state=TaskState.COMPLETED), b'{"a": 1}', result, [attempt], [shard])
    sent = status_pb2.GetTaskResponse(task=full_task_message(full)).SerializeToString()
    task = status_pb2.GetTaskResponse.FromString(sent).task
    assert (task.payload_json, task.result_json) == (b'{"a": 1}', result)
    assert task.result.struct_value.fields["b"].bool_value
    assert task.attempt_history[0].unit.type == task_pb2.UNIT_TYPE_PLAN
    assert (task.shards[0].index, task.shards[0].reason) == (3, error_pb2.REASON_CRASHED)


def test_a_result_only_if_completed() -> None:
    task = full_task_message(FullTask(record(), b"{}", b"1"))
    assert not task.HasField("result_json")
    assert not task.HasField("result")


def test_attempts_and_shards() -> None:
    attempt = attempt_message(
        AttemptRecord("SHARD", 5, 2, 3, 9, "host/1", CREATED, CREATED + timedelta(seconds=1), "PENDING", ERROR)
    )
    assert (attempt.unit.type, attempt.unit.shard_index) == (task_pb2.UNIT_TYPE_SHARD, 5)
    assert (attempt.generation, attempt.attempt, attempt.epoch) == (2, 3, 9)
    assert attempt.outcome == task_pb2.TASK_STATE_PENDING
    assert attempt.error.type == "TimeoutError"
    shard = shard_message(ShardRecord(0, TaskState.PENDING, "", 1, 1, 0, 2, 3, 4, "", None, None, None))
    assert (shard.budgets.interruptions, shard.budgets.max_crashes) == (2, 4)
    assert not shard.HasField("start_time")


def event(**changes: Any) -> EventRecord:
    row = EventRecord(
        task_id=TASK_ID, sequence=9, generation=1, unit=TASK, plan=False, attempt=1, at=CREATED, type="state",
        state="PENDING", reason="", error=None, due_at=None, terminal=False, fraction=None, text=None,
        byte_offset=None, done=None, total=None,
    )  # fmt: skip
    return replace(row, **changes)


def test_events() -> None:
    due = CREATED + timedelta(seconds=3)
    changed = event_message(event(reason="TIMEOUT", error=ERROR, due_at=due))
    assert (changed.task_id, changed.sequence, changed.unit.type) == (str(TASK_ID), 9, task_pb2.UNIT_TYPE_TASK)
    assert changed.state_change.due_time.ToDatetime(UTC) == due
    assert changed.state_change.error.reason == error_pb2.REASON_TIMEOUT
    ended = event_message(event(state="COMPLETED", terminal=True, unit=MERGE))
    assert ended.state_change.terminal
    assert ended.unit.type == task_pb2.UNIT_TYPE_MERGE
    progress = event_message(event(type="progress", state=None, fraction=0.5, text="so far", done=1, total=2, unit=3))
    assert (progress.progress.progress.fraction, progress.progress.progress.message) == (0.5, "so far")
    assert (progress.unit.type, progress.unit.shard_index) == (task_pb2.UNIT_TYPE_SHARD, 3)
    output = event_message(event(type="output", state=None, text="字", byte_offset=12))
    assert (output.output.text, output.output.offset) == ("字", 12)


def test_units_states_reasons_and_times() -> None:
    assert unit_message(TASK, plan=True).type == task_pb2.UNIT_TYPE_PLAN
    assert state_number("EXPIRED") == task_pb2.TASK_STATE_EXPIRED
    assert [reason_number(name) for name in ("", "PURGED", "A_HANDLERS_OWN_WORD")] == [0, 49, 0]
    assert timestamp(None) is None
    before = datetime(1969, 12, 31, 23, 59, 59, 250000, tzinfo=UTC)
    converted = timestamp(before)
    assert converted is not None
    assert converted.ToDatetime(UTC) == before
