"""The loader of named statements."""

import pytest

from headrace_core.db.queries import parse


def test_statements_are_found_by_name_without_comments() -> None:
    found = parse("-- a file\n-- name: one\n-- says why\nselect 1;\n\n-- name: two\nselect 2\n-- inside\n;", "x.sql")
    assert dict(found) == {"one": "select 1", "two": "select 2"}


@pytest.mark.parametrize("text", ["select 1;\n-- name: a\nselect 2", "-- name: a\nselect 1\n-- name: a\nselect 2"])
def test_what_has_no_name_or_a_name_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.sql"):
        parse(text, "x.sql")
