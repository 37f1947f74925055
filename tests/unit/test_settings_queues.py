"""headrace.toml: defaults, durations, relations, and errors that name file, key, value and what is allowed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_core.settings.errors import SettingsError
from headrace_core.settings.queues import Backoff, Topology, backoff_delay, load_topology


def load(tmp_path: Path, text: str) -> Topology:
    path = tmp_path / "headrace.toml"
    path.write_text(text, encoding="utf-8")
    return load_topology(path, {}, tmp_path)


def test_without_a_file_there_is_the_default_queue(tmp_path: Path) -> None:
    topology = load_topology(None, {}, tmp_path)
    queue = topology.queues["default"]
    assert topology.source is None
    assert (queue.max_attempts, queue.max_crashes, queue.max_batch_size, queue.max_batch_timeout) == (3, 3, 16, 0.1)
    assert (queue.max_backlog, queue.max_dead_letters) == (1_000_000, 100_000)
    assert (queue.ack_wait, queue.lease) == (5.0, 10.0)
    assert (queue.backoff.initial, queue.backoff.maximum, queue.backoff.jitter) == (1.0, 300.0, 0.2)


def test_durations_are_seconds_or_texts(tmp_path: Path) -> None:
    topology = load(
        tmp_path,
        """
        [[queues]]
        name = "images"
        ack_wait = 7
        max_batch_timeout = "250ms"
        backoff = { initial = "2s", maximum = "1.5m" }
        """,
    )
    queue = topology.queues["images"]
    assert (queue.ack_wait, queue.max_batch_timeout) == (7.0, 0.25)
    assert (queue.backoff.initial, queue.backoff.maximum, queue.backoff.factor) == (2.0, 90.0, 2.0)
    assert set(topology.queues) == {"default", "images"}


def test_the_default_queue_can_be_declared(tmp_path: Path) -> None:
    assert load(tmp_path, '[[queues]]\nname = "default"\nmax_attempts = 7').queues["default"].max_attempts == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[queues]]\nname = "images"\nmax_atempts = 3', ["images", "max_atempts", "allowed keys:", "max_attempts"]),
        ('[[queues]]\nname = "images"\nmax_attempts = 0', ["images", "max_attempts", "0", "1 to 100"]),
        ('[[queues]]\nname = "images"\nmax_attempts = "3"', ["images", "max_attempts", "'3'", "1 to 100"]),
        ('[[queues]]\nname = "images"\nmax_attempts = true', ["images", "max_attempts", "True"]),
        ('[[queues]]\nname = "images"\nrate_limit = inf', ["images", "rate_limit", "inf"]),
        ('[[queues]]\nname = "images"\nack_wait = "soon"', ["images", "ack_wait", "soon", "250ms"]),
        ('[[queues]]\nname = "images"\nbackoff = { first = 1 }', ["images", "backoff.first", "initial, jitter"]),
        ('[[queues]]\nname = "images"\nbackoff = { initial = "10m" }', ["images", "backoff.maximum", "300", "600"]),
        ('[[queues]]\nname = "Images"', ["Images", "name", "[a-z0-9_-]{1,64}"]),
        ("[[queues]]\nmax_attempts = 3", ["queue number 1", "name is missing"]),
        ('[[queues]]\nname = "a"\n[[queues]]\nname = "a"', ["queue a", "declared twice"]),
        ('brokr = "none"', ["brokr", "allowed keys: broker, namespaces, queues, subject_prefix"]),
        ('broker = "kafka"', ["broker", "kafka", "nats or none"]),
        ("broker = ", ["no TOML"]),
    ],
)
def test_an_error_names_file_key_value_and_what_is_allowed(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    for part in [str(tmp_path / "headrace.toml"), *said]:
        assert part in caught.value.message


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    for name in ("named", "variable", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "headrace.toml").write_text(f'[[queues]]\nname = "{name}"')
    here, named = tmp_path / "here", tmp_path / "named" / "headrace.toml"
    environ = {"HEADRACE_CONFIG": "../variable/headrace.toml"}
    assert "named" in load_topology(named, environ, here).queues
    assert "variable" in load_topology(None, environ, here).queues
    assert "here" in load_topology(None, {}, here).queues


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        load_topology(None, {"HEADRACE_CONFIG": "missing.toml"}, tmp_path)


def test_queues_of_handlers_can_be_added(tmp_path: Path) -> None:
    topology = load(tmp_path, '[[queues]]\nname = "images"\nmax_attempts = 9')
    more = topology.with_queues(["images", "mail"])
    assert (more.queues["images"].max_attempts, more.queues["mail"].max_attempts) == (9, 3)
    assert "mail" not in topology.queues
    with pytest.raises(SettingsError, match="queue 'No Queue'"):
        topology.with_queues(["No Queue"])


def test_the_backoff_doubles_up_to_its_maximum() -> None:
    backoff = Backoff()
    assert [backoff_delay(backoff, n, 0.0) for n in (1, 2, 3, 9, 10, 100)] == [1, 2, 4, 256, 300, 300]
    assert backoff.delay(1, 1.0) == pytest.approx(1.2)
    assert backoff.delay(1, -1.0) == pytest.approx(0.8)


@given(
    failures=st.integers(min_value=0, max_value=10**9),
    jitter=st.floats(min_value=-1, max_value=1),
    factor=st.floats(min_value=1, max_value=100),
    spread=st.floats(min_value=0, max_value=1),
)
def test_no_wait_is_negative_or_endless(failures: int, jitter: float, factor: float, spread: float) -> None:
    backoff = Backoff(factor=factor, jitter=spread)
    assert 0.0 <= backoff_delay(backoff, failures, jitter) <= backoff.maximum * 2
