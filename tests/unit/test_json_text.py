"""JSON text at the edge: what is refused, in words, and what passes."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.json_text import MAX_BYTES, MAX_DEPTH, examine, violations


def check(text: bytes | str, *, require_object: bool = True) -> list[str]:
    raw = text.encode() if isinstance(text, str) else text
    return violations(raw, require_object=require_object, what="the payload")


def nested(depth: int) -> str:
    return '{"a":' * (depth - 1) + "{}" + "}" * (depth - 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff{}", "is not UTF-8: invalid start byte at byte 0"),
        (b'{"a":"\xed\xa0\x80"}', "is not UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"", "is not JSON: Expecting value at line 1, column 1"),
        (b'{"a":1} x', "is not JSON: Extra data"),
        (b'{"a":"\x00"}', "is not JSON: Invalid control character"),
        (b"{'a':1}", "is not JSON"),
        (b'{"a":01}', "is not JSON"),
        (b'{"a":NaN}', "contains NaN, which is no JSON"),
        (b'{"a":[-Infinity]}', "contains -Infinity, which is no JSON"),
        (b'{"a":1e200000}', "the number 1e200000, which is beyond the range of a double"),
        (b'{"a":-1E+400}', "the number -1E+400"),
        (b'{"a":1' + b"0" * 400 + b"}", "the number 10000000000000000000…"),
        (b'{"a":' + b"9" * 5000 + b"}", "beyond the range of a double"),
        (b'{"a":1' + b"0" * 250 + b".5e99}", "beyond the range of a double"),
        (rb'{"a":"\u0000"}', "contains the character NUL"),
        (rb'{"\u0000":1}', "contains the character NUL"),
        (rb'{"a":"\ud800"}', "half a surrogate pair"),
        (rb'{"a":"\udc00\ud800"}', "half a surrogate pair"),
        (rb'{"a":"\ud800\\udc00"}', "half a surrogate pair"),
        (rb'{"a":"\ud800","a":1}', "half a surrogate pair"),
        (b"[1]", "must be a JSON object, not an array"),
        (b'"x"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
        (b"true", "must be a JSON object, not true or false"),
        (b"7", "must be a JSON object, not a number"),
        (nested(MAX_DEPTH + 1), "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' + "[" * 40 + "]" * 40 + ',"a":1}', "nested too deeply"),
    ],
)
def test_what_cannot_be_stored_is_named(text: bytes | str, said: str) -> None:
    found = check(text)
    assert found
    assert said in " ".join(found)
    assert all(sentence.startswith("the payload ") for sentence in found)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        nested(MAX_DEPTH),
        r'{"a":"\ud83d\ude00 \\u0000 \\ud800 \u4e2d"}',
        '{"a":"NaN Infinity e999 [[[ 中文 \\" ]"}',
        '{"a":1e308,"b":-1.7976931348623157e308,"c":1e-400}',
        '{"a":1' + "0" * 308 + "}",
        '{"a":"' + "9" * 5000 + '"}',
        '{"a":"' + "[" * 100 + '"}',
        '{"a":[' + "[]," * 1000 + "[]]}",
        ' {"a" :\t1 }\n',
    ],
)
def test_what_can_be_stored_passes(text: str) -> None:
    assert check(text) == []


def test_other_values_than_objects_pass_where_they_may() -> None:
    assert [check(text, require_object=False) for text in ("[1]", '"x"', "null", "1", "true")] == [[]] * 5


def test_all_violations_are_said_at_once() -> None:
    found = " ".join(check(r'[NaN, 1e999, "\u0000\ud800"]'))
    for part in ("NaN", "1e999", "NUL", "surrogate", "must be a JSON object"):
        assert part in found


def test_the_size_is_bounded_before_anything_is_parsed() -> None:
    text = b'{"a":"' + b"x" * (MAX_BYTES - 8) + b'"}'
    assert len(text) == MAX_BYTES
    assert check(text) == []
    assert check(text + b" ") == [f"the payload has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are allowed"]


def test_the_value_comes_with_the_verdict() -> None:
    assert examine(b'{"a":[1,2.5]}', require_object=True, what="it") == ({"a": [1, 2.5]}, [])
    big = 10**200
    value, found = examine(b'{"a":%d}' % big, require_object=True, what="it")
    assert (value, found) == ({"a": big}, [])
    assert isinstance(value["a"], int)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=30,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(member) for member in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(member) for member in value), default=0)
    return 0


@given(json_values, st.booleans())
def test_it_agrees_with_a_walk_through_the_value(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    nul = "\\u0000" in json.dumps(value, ensure_ascii=True).replace("\\\\", "")
    found = check(text, require_object=False)
    assert bool(found) == (nul or depth_of(value) > MAX_DEPTH)


def test_it_does_not_depend_on_the_depth_of_the_callers_stack() -> None:
    def deeper(levels: int) -> list[str]:
        return deeper(levels - 1) if levels else check(nested(MAX_DEPTH))

    assert deeper(sys.getrecursionlimit() // 2) == []
