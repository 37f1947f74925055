"""Texts that people and programs write for us: either they mean something, or one sort of error says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from headrace import json_text
from headrace.v1 import dead_letter_pb2, status_pb2
from headrace_core.bus.wire import parse_headers
from headrace_core.errors import InvalidFields, PageTokenInvalid
from headrace_core.settings.duration import seconds
from headrace_core.settings.environment import VARIABLES, load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.queues import load_topology
from headrace_core.tasks.message import Malformed, parse
from producer import page_tokens
from status import filters, pagination, trigger
from tests.fuzz.trying import attempt_all
from tests.fuzz.wire_forms import messages, mutated

VALID_TOML = b"""
broker = "nats"
subject_prefix = "headrace"
[[queues]]
name = "images"
max_attempts = 5
ack_wait = "10s"
rate_limit = 2.5
[queues.backoff]
initial = "1s"
maximum = "5m"
jitter = 0.2
"""
KEYS = (
    *("name", "max_attempts", "ack_wait", "backoff", "initial", "maximum", "factor", "jitter", "max_backlog", "queues"),
    *("broker", "subject_prefix", "rate_limit", "max_batch_timeout", "", "ä", "x.y"),
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "5s",
        "-5s",
        "1e9d",
        "9" * 400 + "s",
        "nan",
        "inf",
        "none",
        "nats",
        "5 ms",
        "\u0665s",
        "\u00b2s",
        "1.s",
        "5S",
        "x" * 70,
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


def toml_values() -> SearchStrategy[str]:
    """Values as TOML spells them, some that only TOML has."""
    numbers = st.integers(-(2**70), 2**70).map(str) | st.floats().map(lambda number: str(number).replace("e+", "e"))
    odd = st.sampled_from(
        [
            "2026-01-01",
            "07:32:00",
            "1979-05-27T07:32:00Z",
            "0xff",
            "nan",
            "-inf",
            "true",
            "[]",
            "{}",
            "[{}]",
            '"""a\nb"""',
            "'x'",
        ]
    )
    plain = st.one_of(numbers, TEXTS.map(lambda text: json.dumps(text, ensure_ascii=False)), odd)
    lists = st.lists(plain, max_size=3).map(lambda found: "[" + ", ".join(found) + "]")
    tables = st.dictionaries(st.sampled_from(KEYS), plain, max_size=3).map(_inline)
    return st.one_of(plain, lists, tables)


def _inline(table: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(key)} = {value}" for key, value in table.items()) + "}"


def toml_documents() -> SearchStrategy[bytes]:
    """Documents with our keys and any values, and our own example with bytes changed."""
    table = st.dictionaries(st.sampled_from(KEYS), toml_values(), max_size=5)
    lines = table.map(lambda found: "\n".join(f"{json.dumps(key)} = {value}" for key, value in found.items()))
    queues = st.lists(lines, max_size=3).map(lambda found: "".join(f"\n[[queues]]\n{one}\n" for one in found))
    return st.one_of(
        st.builds(lambda top, rest: (top + rest).encode(), lines, queues),
        queues.map(str.encode),
        mutated(st.just(VALID_TOML)),
        st.binary(max_size=60),
    )


def test_headrace_toml_is_valid_or_an_error_that_names_it(request: pytest.FixtureRequest, folder: Path) -> None:
    path = folder / "headrace.toml"

    def one(document: bytes) -> None:
        path.write_bytes(document)
        error = _refusal(SettingsError, lambda: load_topology(path, {}, folder))
        assert error is None or (str(path) in str(error) and len(str(error)) > len(str(path)) + 5)

    attempt_all(request, toml_documents(), one, inputs=250)


def test_the_environment_is_valid_or_an_error_that_names_a_variable(
    request: pytest.FixtureRequest, folder: Path
) -> None:
    addresses = st.sampled_from(
        [
            "postgresql://h/x",
            "nats://h:4222",
            "127.0.0.1:0",
            "[::1]:99999",
            "h:\u0665",
            "h:\u00b2",
            ":1",
            "nats://[",
            "tls://h,",
            "-1",
            "1e400",
        ]
    )
    known = st.sampled_from(sorted(VARIABLES))
    name = known | st.from_regex(r"HEADRACE_[A-Z_]{0,12}", fullmatch=True)
    values = st.text(max_size=12).filter(lambda text: "\0" not in text) | addresses | TEXTS

    def one(environ: dict[str, str]) -> None:
        said = _refusal(
            SettingsError, lambda: load_settings(environ, default_listen="127.0.0.1:0", cwd=folder / "empty")
        )
        given = [value for value in environ.values() if value]
        assert said is None or "HEADRACE_" in str(said) or any(value in str(said) for value in given)

    attempt_all(request, st.dictionaries(name, values, max_size=4), one, inputs=250)


def test_durations(request: pytest.FixtureRequest) -> None:
    def one(value: object) -> None:
        error = _refusal(ValueError, lambda: seconds(value))
        if error is not None:
            assert repr(value) in str(error)
        else:
            found = seconds(value)
            assert found is value or (isinstance(found, float) and found >= 0)

    attempt_all(request, TEXTS | st.integers() | st.none() | st.from_regex(r"\d{1,400}(ms|s|m|h|d)"), one, inputs=250)


def test_page_tokens_of_both_services(request: pytest.FixtureRequest) -> None:
    wanted = dead_letter_pb2.DeadLetterFilter(queue="a")
    other = dead_letter_pb2.DeadLetterFilter(queue="b")
    from_letters = page_tokens.encode("ListDeadLetters", other, _moment(), "17-4")
    from_tasks = pagination.encode("ListTasks", b"q", uuid4())
    texts = st.one_of(
        st.text(max_size=100),
        *(
            mutated(st.just(token.encode())).map(lambda raw: raw.decode("latin-1"))
            for token in (from_letters, from_tasks)
        ),
        st.sampled_from([from_letters, from_tasks]),
    )

    def one(token: str) -> None:
        for decode in (
            lambda: page_tokens.decode(token, "ListDeadLetters", wanted),
            lambda: pagination.decode("ListTasks", b"another", token),
        ):
            try:
                found: object = decode()
            except PageTokenInvalid:
                continue
            assert found is None, "nothing that was given for something else is taken"
            assert not token

    attempt_all(request, texts, one, inputs=250)


def test_resume_positions_and_filters(request: pytest.FixtureRequest) -> None:
    ids = (str(uuid4()), str(uuid4()).upper(), "x")

    def one(message: Any) -> None:
        check: Any = {
            "WatchTaskRequest": filters.watch_one,
            "WatchTasksRequest": filters.watch_many,
            "TaskFilter": filters.task_filter,
        }[message.DESCRIPTOR.name]
        error = _refusal(InvalidFields, lambda: check(message))
        if error is not None:
            assert error.violations
        else:
            assert all(0 <= number < 2**63 for number in getattr(check(message), "after", {}).values())

    kinds = (status_pb2.WatchTaskRequest, status_pb2.WatchTasksRequest, status_pb2.TaskFilter)
    attempt_all(request, st.one_of([messages(kind.DESCRIPTOR, ids) for kind in kinds]), one, inputs=250)


def test_payload_texts_that_are_taken_can_be_stored_and_read(request: pytest.FixtureRequest) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=12,
    )
    valid = values.map(lambda value: json.dumps({"v": value}).encode())
    deep = st.integers(1, 3000).map(lambda levels: b'{"a":' * levels + b"1" + b"}" * levels)
    escapes = st.lists(st.sampled_from(["\\ud800", "\\udc00", "\\u0000", "\\\\u0000", "\\\\", "a", '\\"']), max_size=6)
    escaped = escapes.map(lambda found: ('{"a": "' + "".join(found) + '"}').encode())

    def one(text: bytes) -> None:
        value, complaints = json_text.examine(text, require_object=True, what="the payload")
        assert all(complaint.startswith("the payload") for complaint in complaints)
        if not complaints:
            assert isinstance(value, dict)
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
            assert b"\\u0000" not in text.replace(b"\\\\", b"")

    attempt_all(request, st.one_of(valid, mutated(valid), deep, escaped, st.binary(max_size=40)), one, inputs=250)


def test_metadata_of_a_scaler(request: pytest.FixtureRequest) -> None:
    keys = st.sampled_from(["queues", "metric", "target", "queuesFromEnv", "targetFromEnv", "scalerAddress"]) | TEXTS
    values = TEXTS | st.sampled_from(["work", "oldest-age", "64", "0", "0.0001", "1" * 10, "a,b", ",", "a,,b"])

    def one(metadata: dict[str, str]) -> None:
        found, violations = trigger.parse(metadata)
        assert found.target > 0 or violations
        assert all(violation.field.startswith("scalerMetadata") for violation in violations)

    attempt_all(request, st.dictionaries(keys, values, max_size=5), one, inputs=250)


def test_bodies_and_headers_of_messages(request: pytest.FixtureRequest) -> None:
    valid = json.dumps({"task": str(uuid4()), "unit": -1, "dispatch": 1}).encode()

    def one(body: bytes) -> None:
        parse_headers(body)
        try:
            found = parse(body)
        except Malformed:
            return
        if found is not None:
            assert isinstance(found.unit_id.task_id, UUID)
            assert -(2**31) <= found.unit_id.unit < 2**31

    attempt_all(request, mutated(st.just(valid)) | st.binary(max_size=80), one, inputs=250)


E = TypeVar("E", bound=Exception)


def _refusal(kind: type[E], call: Callable[[], object]) -> E | None:
    """The one sort of error that a call may end with; None if it did not."""
    try:
        call()
    except kind as error:
        return error
    return None


def _moment() -> Any:

    return datetime.now(UTC)
