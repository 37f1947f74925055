"""What is collected from handler modules, and how payloads and results are converted."""

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.app import ConsumerService, registry_of
from consumer.invocation import arguments_of, outcome_of, raised
from consumer.registry import collect
from headrace import NonRetryable, handler
from headrace.handler_values import InputRefused, ResultRefused, encoded, needed_shards
from headrace_core.settings.environment import load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.tasks.outcome import Planned, Raised, Succeeded

SAMPLES = "tests.handlers.sample_handlers"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path for modules that a test writes."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", "") and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_functions_and_sharded_classes_are_collected_once() -> None:
    registry = collect([SAMPLES, SAMPLES])
    assert {"echo", "ai.analyze", "double", "count-words"} <= set(registry.kinds)
    assert set(registry.sharded) == {"ai.analyze", "count-words", "count-words-tolerant"}
    assert "ai.analyze" not in collect([SAMPLES], built_in=False).kinds


def test_the_built_in_kinds_can_be_switched_off_where_there_are_others(tmp_path: Path) -> None:
    off = {"HEADRACE_BUILT_IN": "false"}
    with pytest.raises(SettingsError, match="HEADRACE_BUILT_IN = false leaves nothing to run"):
        ConsumerService(load_settings(off, default_listen="127.0.0.1:0", cwd=tmp_path))
    settings = load_settings(off | {"HEADRACE_HANDLERS": SAMPLES}, default_listen="127.0.0.1:0", cwd=tmp_path)
    assert not {"echo", "ai.analyze"} & set(registry_of(settings).kinds)
    assert {"echo", "ai.analyze"} <= set(registry_of(settings.model_copy(update={"built_in": True})).kinds)


def test_a_kind_declared_twice_names_both(modules: Path) -> None:
    source = "from headrace import handler\n@handler('twin')\nasync def {}(ctx, input: dict): ...\n"
    (modules / "twins_a.py").write_text(source.format("first"))
    (modules / "twins_b.py").write_text(source.format("second"))
    with pytest.raises(SettingsError, match=r"twins_a\.first.*twins_b\.second"):
        collect(["twins_a", "twins_b"])


@pytest.mark.parametrize("option", ["timeout", "progress_timeout"])
def test_a_limit_that_is_not_positive_is_refused(option: str) -> None:
    for limit in (timedelta(0), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match=rf"^{option} .* of kind 'limited' is not positive"):
            handler("limited", **{option: limit})  # type: ignore[arg-type]


def test_a_sharded_handler_with_such_a_limit_is_refused_by_name(modules: Path) -> None:
    (modules / "bad_limit.py").write_text(
        "from datetime import timedelta\nfrom headrace import ShardedHandler\n"
        "class Parts(ShardedHandler):\n    kind = 'parts'\n    progress_timeout = timedelta(0)\n"
        "    async def plan(self, ctx, input: dict): ...\n"
    )
    with pytest.raises(SettingsError, match=r"bad_limit\.Parts: progress_timeout"):
        collect(["bad_limit"])


def test_the_progress_timeout_of_every_form_is_collected() -> None:
    handlers = collect(["tests.handlers.stubborn"]).handlers
    assert {handlers[kind].progress_timeout for kind in ("stands-still", "stands-still-shard")} == {0.3}
    assert handlers["neighbour"].progress_timeout is None


def test_a_handler_imported_into_a_second_module_is_the_same(modules: Path) -> None:
    (modules / "origin_one.py").write_text(
        "from headrace import handler\n@handler('once')\nasync def once(ctx, input: dict): ...\n"
    )
    (modules / "importer_one.py").write_text("from origin_one import once\n")
    assert collect(["origin_one", "importer_one"], built_in=False).kinds == ("once",)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "has no handler"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import nowhere_x", "nowhere_x"),
    ],
)
def test_a_module_that_cannot_be_used_is_a_start_up_error(modules: Path, source: str, says: str) -> None:
    (modules / "unusable_one.py").write_text(source)
    with pytest.raises(SettingsError, match=says):
        collect(["unusable_one"])


def test_a_sharded_class_with_a_bad_quorum_is_named(modules: Path) -> None:
    (modules / "bad_quorum.py").write_text(
        "from headrace import ShardedHandler\nclass Bad(ShardedHandler):\n    kind = 'bad'\n    quorum = 2\n"
    )
    with pytest.raises(SettingsError, match=r"bad_quorum\.Bad.*quorum"):
        collect(["bad_quorum"])


def test_a_schema_is_registered_with_its_hash() -> None:
    rows = {name: handler.kind_row for name, handler in collect([SAMPLES]).handlers.items()}
    schema = rows["double"].schema
    assert schema is not None
    assert json.loads(schema)["required"] == ["n"]
    assert rows["double"].schema_hash == rows["batch-double"].schema_hash != "any"
    assert (rows["talk"].schema, rows["talk"].schema_hash) == (None, "any")


def test_input_is_decoded_by_the_model_or_as_json() -> None:
    handlers = collect([SAMPLES], built_in=False).handlers
    (number,) = arguments_of(handlers["double"], "TASK", b'{"n": 3}', ())
    assert number.n == 3
    assert arguments_of(handlers["talk"], "TASK", b'{"a": 9007199254740993}', ()) == [{"a": 9007199254740993}]
    assert arguments_of(handlers["count-words"], "MERGE", b"{}", [b"1", b"2"]) == [{}, [1, 2]]
    with pytest.raises(InputRefused, match=r"n: Input should be a valid integer"):
        arguments_of(handlers["double"], "TASK", b'{"n": "x"}', ())


class Answer(pydantic.BaseModel):
    text: str


def test_results_become_json() -> None:
    handler = collect([SAMPLES], built_in=False).handlers["double"]
    assert outcome_of(handler, "TASK", {"a": Answer(text="é")}) == Succeeded('{"a":{"text":"é"}}'.encode())
    assert outcome_of(handler, "TASK", None) == Succeeded(b"null")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), object(), {"a": {1, 2}}, "\ud800", "a\x00b", "x" * 1_100_000]
)
def test_what_cannot_be_stored_is_not_retried(value: Any) -> None:
    handler = collect([SAMPLES], built_in=False).handlers["double"]
    outcome = outcome_of(handler, "TASK", value)
    assert isinstance(outcome, Raised)
    assert not outcome.retryable


def test_nesting_without_end_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ResultRefused):
        encoded(value, "the result")


def test_a_plan_must_be_a_list_of_objects() -> None:
    handler = collect([SAMPLES], built_in=False).handlers["count-words-tolerant"]
    assert outcome_of(handler, "PLAN", [{"a": 1}, {"a": 2}, {"a": 3}]) == Planned(
        (b'{"a":1}', b'{"a":2}', b'{"a":3}'), 2
    )
    assert outcome_of(handler, "PLAN", None) == Planned((), 0)
    bad: Any
    for bad in ("text", {"a": 1}, [1], [{}] * 10_001):
        assert isinstance(outcome_of(handler, "PLAN", bad), Raised)


@given(st.integers(0, 10_000), st.floats(0.0001, 1.0))
def test_the_quorum_is_reachable_and_enough(total: int, quorum: float) -> None:
    needed = needed_shards(total, quorum)
    assert 0 <= needed <= total
    assert needed >= total * quorum - 1e-6
    assert needed == 0 or needed - 1 < total * quorum


def test_the_quorum_is_not_a_victim_of_binary_fractions() -> None:
    assert needed_shards(100, 0.07) == 7


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_exceptions_become_outcomes() -> None:
    assert raised(NonRetryable("no", reason="CODE")) == Raised("CODE", "no", retryable=False)
    assert raised(ValueError("x")) == Raised("ValueError", "x")
    assert raised(Unprintable()).type == "Unprintable"
