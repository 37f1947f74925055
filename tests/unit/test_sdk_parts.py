"""The client's decisions, apart from any connection."""

import subprocess
import sys

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from headrace import Client, errors
from headrace.backoff import Backoff
from headrace.config import address
from headrace.payload import encode_payload
from headrace.reasons import reason_name
from headrace.v1 import event_pb2, task_pb2
from headrace.v1.error_pb2 import Reason
from headrace.watch import COMMIT_SECONDS, MOST_RESUMED, Positions, Verdict

REFUSALS = [
    name.removeprefix("REASON_") for name, number in Reason.items() if 0 < number < Reason.REASON_ATTEMPTS_EXHAUSTED
]


def event(sequence: int, body: str = "progress", *, task: str = "t") -> event_pb2.TaskEvent:
    made = event_pb2.TaskEvent(task_id=task, sequence=sequence)
    getattr(made, body).SetInParent()
    return made


@given(st.lists(st.integers(1, 12), max_size=60), st.integers(0, 5))
def test_whatever_arrives_each_event_is_delivered_once_and_in_order(arrivals: list[int], after: int) -> None:
    positions = Positions({"t": after})
    delivered = [n for n in arrivals if positions.judge(event(n)) is Verdict.DELIVER]
    assert delivered == list(range(after + 1, after + 1 + len(delivered)))
    assert positions.to_resume() == {"t": after + len(delivered)}


def test_a_task_in_a_gap_begins_again_with_a_snapshot() -> None:
    positions = Positions({"t": 3})
    assert positions.judge(event(9, "gap")) is Verdict.DELIVER
    assert positions.to_resume() == {}
    assert positions.judge(event(9, "snapshot")) is Verdict.DELIVER
    assert positions.judge(event(9, "snapshot")) is Verdict.REPEATED
    assert positions.to_resume() == {"t": 9}


def test_ended_tasks_are_forgotten_oldest_first() -> None:
    positions = Positions()
    for number in range(5):
        ended = event(1, "snapshot", task=str(number))
        ended.snapshot.state = task_pb2.TASK_STATE_COMPLETED
        positions.judge(ended)
    positions.judge(event(1, "snapshot", task="open"))
    positions.forget_ended(keep=2)
    assert set(positions.to_resume()) == {"3", "4", "open"}


def test_a_watch_that_was_cut_before_any_event_knows_from_when_on_to_ask() -> None:
    positions = Positions()
    assert positions.ended_since == 0
    beat = event_pb2.TaskEvent(heartbeat=event_pb2.Heartbeat())
    beat.time.seconds = 1_000
    positions.note_time(beat)
    assert positions.ended_since == (1_000 - COMMIT_SECONDS) * 10**9
    assert Positions(ended_since=7).ended_since == 7


def test_what_is_running_comes_before_what_has_ended_where_not_all_can_be_named() -> None:
    positions = Positions({f"open{number}": 1 for number in range(MOST_RESUMED - 1)})
    for number in range(3):
        ended = event(2, "snapshot", task=f"ended{number}")
        ended.snapshot.state = task_pb2.TASK_STATE_COMPLETED
        positions.judge(ended)
    named = positions.to_follow()
    assert len(named) == MOST_RESUMED
    assert "ended2" in named


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0, 60))
def test_pauses_are_bounded_and_no_shorter_than_asked(attempt: int, draw: float, retry_after: float | None) -> None:
    pause = Backoff(0.1, 5.0).delay(attempt, retry_after=retry_after, draw=draw)
    assert pause >= max(0.05, retry_after or 0)
    assert pause <= max(5.0, (retry_after or 0) * 1.1)


@pytest.mark.parametrize("reason", REFUSALS)
def test_every_refusal_of_the_proto_has_a_class_of_its_own(reason: str) -> None:
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="headrace"))
    error = errors.from_status(grpc.StatusCode.UNKNOWN.value[0], "text", [packed])
    assert error.reason == reason == type(error).default_reason


def test_somebody_elses_reason_is_not_ours() -> None:
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason="TASK_NOT_FOUND", domain="proxy.example"))
    error = errors.from_status(grpc.StatusCode.UNAVAILABLE.value[0], "text", [packed])
    assert type(error) is errors.UnavailableError
    assert error.reason == ""


def test_names_of_reasons() -> None:
    assert [reason_name(number) for number in (0, 41, 9999)] == ["", "NON_RETRYABLE", "9999"]


def test_payloads_keep_their_digits_and_letters() -> None:
    assert encode_payload({"n": 2**63, "t": "王"}) == '{"n":9223372036854775808,"t":"王"}'.encode()
    assert encode_payload(None) == b"{}"


@pytest.mark.parametrize("depth", [100_000])
def test_a_payload_nested_without_end_is_refused(depth: int) -> None:
    payload: dict[str, object] = {}
    for _ in range(depth):
        payload = {"a": payload}
    with pytest.raises(errors.InvalidFieldsError, match="32 levels"):
        encode_payload(payload)


def test_addresses_come_from_the_argument_the_environment_the_default() -> None:
    assert address("a:1", "V", "d:3", {"V": "b:2"}) == "a:1"
    assert address(None, "V", "d:3", {"V": "b:2"}) == "b:2"
    assert address(None, "V", "d:3", {"V": ""}) == "d:3"


def test_the_environment_is_read_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PRODUCER_ADDRESS", "elsewhere:1")
    assert Client().config.producer == "elsewhere:1"
    with pytest.raises(ValueError, match="timeout"):
        Client(timeout=0)


def test_the_handler_api_needs_neither_grpc_nor_the_services() -> None:
    code = (
        "import sys; from headrace import handler, ShardedHandler, TaskContext, NonRetryable;"
        "heavy = {'grpc', 'psycopg', 'nats', 'structlog', 'pydantic_settings'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
