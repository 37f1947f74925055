"""A domain error as google.rpc.Status, whatever its size."""

import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from headrace.v1 import producer_pb2
from headrace_core.errors import (
    BacklogFull,
    DeadLettersFull,
    DomainError,
    Draining,
    InvalidFields,
    ServerLimit,
    TaskNotFound,
    Violation,
)
from headrace_core.rpc.status import cut, status_of

SOFT_LIMIT = 8 * 1024


@pytest.mark.parametrize("kind", [BacklogFull, DeadLettersFull, ServerLimit, Draining])
def test_errors_that_pass_always_say_when_to_try_again(kind: type[DomainError]) -> None:
    kinds = [detail.type_url.rsplit(".", 1)[1] for detail in status_of(kind("no")).details]
    assert "RetryInfo" in kinds


def test_errors_that_stay_say_nothing_of_it() -> None:
    assert [detail.type_url.rsplit(".", 1)[1] for detail in status_of(TaskNotFound("no")).details] == ["ErrorInfo"]


def test_a_submit_error_has_the_same_form_on_the_wire() -> None:
    status = status_of(InvalidFields.of([Violation("kind", "is required")]))
    error = producer_pb2.SubmitError.FromString(status.SerializeToString())
    assert (error.code, error.message) == (3, "kind: is required")
    info = error_details_pb2.ErrorInfo()
    assert error.details[0].Unpack(info)
    assert info.reason == "INVALID_FIELDS"


@given(
    message=st.text(max_size=3000),
    violations=st.lists(st.tuples(st.text(max_size=400), st.text(max_size=2000)), max_size=40),
    metadata=st.dictionaries(st.text(max_size=30), st.text(max_size=500), max_size=20),
)
def test_no_error_outgrows_the_headers(
    message: str, violations: list[tuple[str, str]], metadata: dict[str, str]
) -> None:
    error = InvalidFields(
        message, violations=[Violation(*pair) for pair in violations], metadata=metadata, retry_after=1.0
    )
    status = status_of(error)
    on_the_wire = len(status.SerializeToString()) * 4 / 3 + len(status.message.encode()) * 3
    assert on_the_wire < SOFT_LIMIT - 512


@given(st.text(), st.integers(min_value=3, max_value=50))
def test_cut_text_is_text_within_its_limit(text: str, limit: int) -> None:
    assert len(cut(text, limit).encode()) <= limit
