"""What the bus packs, declares and translates, without a server."""

import uuid
from dataclasses import dataclass

import pytest
from nats import errors as nats_errors

from headrace_core.bus.control import unpack_ids
from headrace_core.bus.dead_letters import HEADER_LENGTH, header_safe
from headrace_core.bus.declaration import StreamNames, declared, differences
from headrace_core.bus.errors import (
    BusUnavailable,
    DurableMissing,
    JetStreamMissing,
    RequestRefused,
    StreamFull,
    StreamMissing,
    from_answer,
    from_client,
)
from headrace_core.bus.wakes import WakeHint, pack_wakes, unpack_wakes
from headrace_core.bus.wire import parse_headers, publish_command


@dataclass(frozen=True)
class Queue:
    name: str
    ack_wait: float = 5.0


def test_wakes_survive_packing() -> None:
    wakes = [WakeHint(uuid.uuid4(), 1), WakeHint(uuid.uuid4(), 2**63)]
    body = pack_wakes(wakes)
    assert len(body) == 48
    assert list(unpack_wakes(body)) == wakes
    assert list(unpack_wakes(b"")) == []


def test_bodies_of_another_format_yield_nothing() -> None:
    assert list(unpack_wakes(b"x" * 23)) == []
    assert unpack_ids(b"x" * 17) == []


def test_a_queue_has_a_durable_for_each_level() -> None:
    declaration = declared([Queue("default"), Queue("default-high", ack_wait=0.5)], StreamNames("ACME", "acme"))
    assert [stream.name for stream in declaration.streams] == ["ACME_TASKS", "ACME_DLQ", "ACME_ADVISORIES"]
    found = {durable.name: durable.config for durable in declaration.durables}
    assert list(found) == [
        "default-resume", "default-high", "default-normal", "default-low",
        "default-high-resume", "default-high-high", "default-high-normal", "default-high-low", "relay",
    ]  # fmt: skip
    assert found["default-low"]["filter_subject"] == "acme.tasks.default.low"
    assert found["default-low"]["max_deliver"] == 3
    assert found["default-high-low"]["ack_wait"] == 500_000_000


def test_differences_are_sentences_and_an_absent_field_is_zero() -> None:
    wanted = {"max_deliver": 3, "ack_wait": 5_000_000_000, "discard_new_per_subject": True, "max_age": 0}
    assert differences(wanted, {"max_deliver": 5, "ack_wait": 30_000_000_000}) == [
        "max_deliver is 5, not 3",
        "ack_wait is 30 s, not 5 s",
        "discard_new_per_subject is False, not True",
    ]
    assert differences(wanted, dict(wanted)) == []


@pytest.mark.parametrize(
    ("err_code", "expected"),
    [(10059, StreamMissing), (10014, DurableMissing), (10077, StreamFull), (10039, JetStreamMissing),
     (10076, JetStreamMissing), (10100, RequestRefused)],
)  # fmt: skip
def test_answers_are_told_apart_by_code(err_code: int, expected: type[Exception]) -> None:
    error = from_answer("$JS.API.X", {"code": 400, "err_code": err_code, "description": "why"})
    assert type(error) is expected
    assert "$JS.API.X" in error.message
    assert "why" in error.message


@pytest.mark.parametrize(
    ("error", "expected"),
    [(nats_errors.NoRespondersError(), JetStreamMissing), (nats_errors.OutboundBufferLimitError(), BusUnavailable),
     (nats_errors.TimeoutError(), BusUnavailable), (TimeoutError(), BusUnavailable),
     (nats_errors.MaxPayloadError(), RequestRefused), (nats_errors.BadSubjectError(), RequestRefused),
     (AttributeError("err_code"), BusUnavailable)],
)  # fmt: skip
def test_errors_of_the_client_are_translated_and_say_something(error: Exception, expected: type[Exception]) -> None:
    translated = from_client("publish on a.b", error)
    assert type(translated) is expected
    assert translated.message.startswith("publish on a.b: ")
    assert len(translated.message) > len("publish on a.b: ")


def test_header_values_cannot_break_out_of_their_line() -> None:
    assert header_safe("one\r\nNats-Msg-Id: evil\tß") == "one Nats-Msg-Id: evil ?"
    assert header_safe("x" * 1000) == "x" * (HEADER_LENGTH - 3) + "..."


def test_commands_count_their_bytes() -> None:
    assert publish_command("a.b", b"xyz", "", None, 100) == b"PUB a.b  3\r\nxyz\r\n"
    command = publish_command("a.b", b"xyz", "r.1", {"Key": "ä"}, 100)
    head = "NATS/1.0\r\nKey: ä\r\n\r\n".encode()
    assert command == b"HPUB a.b r.1 %d %d\r\n%bxyz\r\n" % (len(head), len(head) + 3, head)


def test_a_header_cannot_smuggle_in_another_line() -> None:
    command = publish_command("a", b"", "", {"Key": "v\r\nNats-Rollup: all\r\n\r\nPUB b 0"}, 1000)
    assert command.count(b"\r\n") == 5
    assert parse_headers(command.split(b"\r\n", 1)[1]) == {"Key": "v  Nats-Rollup: all    PUB b 0"}


@pytest.mark.parametrize(
    ("subject", "headers", "limit"),
    [("", None, 10), ("a b", None, 10), ("a\r\nPUB b 0", None, 10), ("a", {"bad key": "v"}, 100),
     ("a", {"Key\r\nX": "v"}, 100), ("a", {"": "v"}, 100), ("a", None, 2), ("a", {"Key": "v"}, 10)],
)  # fmt: skip
def test_what_no_server_would_take_is_refused(subject: str, headers: dict[str, str] | None, limit: int) -> None:
    with pytest.raises(RequestRefused):
        publish_command(subject, b"xyz", "", headers, limit)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"NATS/1.0\r\nA: 1\r\nB:2\r\n\r\n", {"A": "1", "B": "2"}),
        (b"NATS/1.0 503\r\n\r\n", {"Status": "503", "Description": ""}),
        (
            b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\n\r\n",
            {"Status": "408", "Description": "Request Timeout", "Nats-Pending-Messages": "7"},
        ),
    ],
)
def test_headers_are_parsed(raw: bytes, expected: dict[str, str]) -> None:
    assert parse_headers(raw) == expected
