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
        "default-high-resume", "default-high-high", "default-high-normal", "default-high-low",
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
