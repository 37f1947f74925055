"""Lines of logs: one JSON object each, without passwords, also those of other libraries."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from headrace_core.telemetry import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == "", "standard output belongs to the CLI"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_carries_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "producer")
    logs.get("test").info("took over", action="takeover", units=3)
    (line,) = lines(capsys)
    assert (line["event"], line["action"], line["units"]) == ("took over", "takeover", 3)
    assert (line["service"], line["level"], line["module"]) == ("producer", "info", "test")
    assert line["timestamp"].endswith("Z")


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning", "json", "producer")
    logs.get("test").info("quiet", action="x")
    logging.getLogger("somebody.else").info("quiet")
    assert lines(capsys) == []


def test_other_libraries_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "producer")
    logging.getLogger("somebody.else").warning("lost %s", "postgresql://joe:hunter2@db/x")
    (line,) = lines(capsys)
    assert (line["event"], line["service"]) == ("lost postgresql://joe:***@db/x", "producer")
    assert line["logger"] == "somebody.else"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_passwords_are_cut_out_of_values_and_tracebacks(
    capsys: pytest.CaptureFixture[str], log_format: logs.LogFormat
) -> None:
    logs.configure("info", log_format, "producer")
    try:
        raise ValueError("cannot reach nats://joe:hunter2@nats:4222")
    except ValueError:
        logs.get("test").exception("failed", action="x", url="postgresql://joe:hunter2@db/x")
    written = capsys.readouterr().err
    assert "hunter2" not in written
    assert "nats://joe:***@nats:4222" in written


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console", "producer")
    logs.get("test").info("took over", action="takeover")
    assert "took over" in capsys.readouterr().err
