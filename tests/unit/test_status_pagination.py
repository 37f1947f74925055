"""A page token is good for the method and filter that it was given for, unchanged, and for nothing else."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_core.errors import InvalidFields, PageTokenInvalid
from status import pagination

LAST = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


@given(st.uuids(), st.binary(max_size=200))
def test_a_token_names_its_position(last: UUID, query: bytes) -> None:
    assert pagination.decode("ListTasks", query, pagination.encode("ListTasks", query, last)) == last


def test_a_token_of_another_filter_or_method_is_refused() -> None:
    token = pagination.encode("ListTasks", b"queue a", LAST)
    with pytest.raises(PageTokenInvalid):
        pagination.decode("ListTasks", b"queue b", token)
    with pytest.raises(PageTokenInvalid):
        pagination.decode("ListDeadLetters", b"queue a", token)


def test_every_changed_character_is_noticed() -> None:
    token = pagination.encode("ListTasks", b"", LAST)
    for index, character in enumerate(token[:-1]):
        changed = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        with pytest.raises(PageTokenInvalid):
            pagination.decode("ListTasks", b"", changed)


@given(st.text(max_size=100))
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(PageTokenInvalid):
        pagination.decode("ListTasks", b"", text)


def test_tokens_say_nothing_in_clear() -> None:
    assert str(LAST) not in pagination.encode("ListTasks", b"", LAST)
    assert pagination.encode("ListTasks", b"", uuid4()) != pagination.encode("ListTasks", b"", uuid4())


@pytest.mark.parametrize(("asked", "given_size"), [(0, 50), (1, 1), (1000, 1000)])
def test_page_sizes(asked: int, given_size: int) -> None:
    assert pagination.page_size(asked) == given_size


@pytest.mark.parametrize("asked", [-1, 1001, 2**31 - 1])
def test_page_sizes_out_of_bounds_are_refused(asked: int) -> None:
    with pytest.raises(InvalidFields) as refused:
        pagination.page_size(asked)
    assert [violation.field for violation in refused.value.violations] == ["page_size"]
