"""What people type: values, and the sentences about what is none."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from headrace.cli import arguments, server_verbs
from headrace.cli.analyze import result_lines
from headrace.cli.describe import event_text
from headrace.cli.entry import build_app, run
from headrace.cli.exits import ExitCode, Failure
from headrace.v1 import event_pb2, task_pb2


@pytest.mark.parametrize("group", ["dlq", "queues", "db", "topology"])
def test_a_group_alone_prints_its_help(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert run([group]) == 0
    written = capsys.readouterr()
    assert written.out.startswith(f"Usage: headrace {group} [OPTIONS] COMMAND")
    assert "\nCommands:\n" in written.out
    assert written.err == ""


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["submit", "echo", "--payload", "{"], "--payload"),
        (["submit", "echo", "--payload", "[1]"], "JSON object"),
        (["submit", "echo", "--payload", '{"a":NaN}'], "NaN"),
        (["submit", "echo", "--payload", "@/nowhere"], "/nowhere"),
        (["submit", "echo", "--payload", '{"a":"\\ud800"}'], "surrogate"),
        (["submit", "echo", "--label", "x"], "KEY=VALUE"),
        (["submit", "echo", "--run-at", "2030-01-01T00:00:00"], "time zone"),
        (["submit", "echo", "--run-at", "2030-01-01T00:00:00Z", "--delay", "1s"], "not both"),
        (["submit", "echo", "--delay", "soon"], "--delay"),
        (["submit", "echo", "--priority", "urgent"], "--priority"),
        (["submit", "echo", "--max-attempts", "0"], "--max-attempts"),
        (["analyze", "/nowhere"], "/nowhere"),
        (["list", "--state", "ASLEEP"], "ASLEEP"),
        (["dlq", "list", "--reason", "mood"], "mood"),
        (["dlq", "redrive"], "--all"),
        (["dlq", "redrive", "some-id", "--all"], "--all"),
        (["get", "x", "--status", " "], "status"),
        (["no-such-verb"], "no-such-verb"),
        (["submit"], "KIND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_calls_that_make_no_sense_are_exit_code_2(
    capsys: pytest.CaptureFixture[str], typed: list[str], says: str
) -> None:
    assert run([*typed, "--json"]) == 2
    written = capsys.readouterr()
    sentence, *_, last = written.err.splitlines()
    assert written.out == ""
    assert sentence.startswith("headrace: ")
    assert says in sentence
    assert says in json.loads(last)["error"]["message"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("250ms", 0.25), ("5m", 300), ("2h", 7200), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert arguments.duration(text, "--delay") == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "-5s", "5 weeks", "1e9", "nan", "9" * 30 + "d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(Failure, match="--delay"):
        arguments.duration(text, "--delay")


def test_a_time_is_a_moment_or_a_duration_from_now() -> None:
    assert arguments.moment("2030-01-31T08:00:00Z", "--run-at") == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert arguments.moment("2030-01-31T09:00:00+01:00", "--run-at") == datetime(2030, 1, 31, 8, tzinfo=UTC)
    ahead = arguments.moment("5m", "--deadline") - datetime.now(UTC)
    assert timedelta(minutes=4) < ahead <= timedelta(minutes=5)


def test_labels_may_hold_equals_signs() -> None:
    assert arguments.labels(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        (["--namespace", "dev", "db", "migrate"], "db"),
        (["--json", "dev"], "dev"),
        (["--producer=x", "topology"], "topology"),
        (["--help"], None),
        ([], None),
    ],
)
def test_the_called_verb_is_found_among_options(typed: list[str], called: str | None) -> None:
    assert server_verbs.called_verb(typed) == called


@pytest.mark.parametrize(("libraries", "hidden"), [((), False), (("nowhere_to_be_found",), True)])
def test_verbs_of_the_services_are_hidden_without_the_server_extra(
    monkeypatch: pytest.MonkeyPatch, libraries: tuple[str, ...], hidden: bool
) -> None:
    monkeypatch.setattr(server_verbs, "SERVER_LIBRARIES", libraries)
    monkeypatch.setattr(server_verbs, "entry_points", lambda group: [_Point("dev"), _Point(group)])
    commands = {command.name: command.hidden for command in build_app(["--help"]).registered_commands}
    assert commands["dev"] is hidden
    assert commands["submit"] is False


class _Point:
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_defect_of_our_own_is_no_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(_Point):
        def load(self) -> None:
            raise ModuleNotFoundError("No module named 'headrace_core.nowhere'", name="headrace_core.nowhere")

    monkeypatch.setattr(server_verbs, "entry_points", lambda group: [Broken("dev")] if group else [])
    assert run(["dev"]) == 1
    assert "headrace_core.nowhere" in capsys.readouterr().err


def test_a_result_of_another_shape_is_shown_as_far_as_it_goes() -> None:
    assert list(result_lines({})) == ["Summary", "  (none)"]


def test_a_shards_progress_is_its_own() -> None:
    event = event_pb2.TaskEvent(unit=task_pb2.Unit(type=task_pb2.UNIT_TYPE_SHARD, shard_index=3))
    event.progress.progress.fraction = 0.5
    event.progress.progress.total_shards = 8
    assert event_text(event) == "shard 3  50%"
    event.unit.type = task_pb2.UNIT_TYPE_TASK
    event.progress.progress.done_shards = 2
    assert event_text(event) == "2/8 shards"


def test_the_help_imports_neither_grpc_nor_rich_nor_the_services() -> None:
    code = (
        "import sys; from headrace.cli.entry import run; run(['--help']);"
        "heavy = {'grpc', 'rich.console', 'psycopg', 'nats', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "submit" in done.stdout


def test_a_payload_without_its_option_is_told_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "echo", '{"a":1}']) == ExitCode.USAGE
    assert capsys.readouterr().err.strip().endswith("--payload: headrace submit KIND --payload '{…}'")
