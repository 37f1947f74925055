"""Lines of logs: one JSON object each, without passwords, also those of other libraries."""

import contextvars
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from headrace_core.telemetry import logs
from headrace_core.telemetry.subject import about


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
    assert "postgresql://joe:***@db/x" in written
    assert "ValueError" in written
    assert "test_telemetry_logs.py" in written, "where it came from"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://secret@h:4222", "nats://***@h:4222"),
        ("postgresql://joe:se@cret@db/x", "postgresql://joe:***@db/x"),
        ("nats://a:secret@h1,nats://b:secret@h2", "nats://a:***@h1,nats://b:***@h2"),
        ("postgresql://db/x?user=joe&password=secret&sslmode=x", "postgresql://db/x?user=joe&password=***&sslmode=x"),
        ("host=db password=secret", "host=db password=***"),
        ("http://h/a@b", "http://h/a@b"),
    ],
)
def test_secrets_in_addresses_are_cut_out_in_every_form(text: str, shown: str) -> None:
    assert logs.without_passwords(text) == shown


def test_a_traceback_says_what_and_where_and_never_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug", "json", "producer")
    try:
        try:
            int("marked-payload")
        except ValueError as error:
            raise KeyError("marked-payload") from error
    except KeyError:
        logging.getLogger("somebody.else").exception("it failed")
    (line,) = lines(capsys)
    assert "marked" not in json.dumps(line)
    assert line["exception"].splitlines()[0] == "ValueError"
    assert "KeyError" in line["exception"]


def test_what_the_system_says_of_itself_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "producer")
    logs.get("test").error("x", action="x", exc_info=ConnectionRefusedError(111, "Connection refused"))
    (line,) = lines(capsys)
    assert line["exception"] == "ConnectionRefusedError: Connection refused"


def test_lines_of_a_unit_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", "consumer")

    def work() -> None:
        about(lambda: {"task": "t", "epoch": 3})
        logs.get("test").info("x", action="x", epoch=4)
        logging.getLogger("somebody.else").warning("y")

    contextvars.copy_context().run(work)
    logs.get("test").info("z", action="z")
    found = lines(capsys)
    assert [(line.get("task"), line.get("epoch")) for line in found] == [("t", 4), ("t", 3), (None, None)]


def test_console_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "console", "producer")
    logs.get("test").info("took over", action="takeover")
    assert "took over" in capsys.readouterr().err
