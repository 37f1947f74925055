"""The inputs that did harm once, each by itself."""

import base64
import json
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from grpc_reflection.v1alpha import reflection_pb2
from nats.errors import ProtocolError

from headrace.v1 import dead_letter_pb2
from headrace_core.bus.task_stream import parse_advisory
from headrace_core.bus.wire import DirectParser, Incoming
from headrace_core.errors import PageTokenInvalid
from headrace_core.rpc import reflection
from headrace_core.tasks.message import Malformed, parse
from producer import page_tokens


def _parser(heard: list[Incoming]) -> DirectParser:
    client: Any = SimpleNamespace(direct={1: heard.append})
    return DirectParser(client)


async def test_a_subject_or_reply_that_is_no_utf8_is_a_message_like_others() -> None:
    """It left the connection deaf for good: the library ends its reading at any error and never connects anew."""
    heard: list[Incoming] = []
    await _parser(heard).parse(b"MSG a.\xff 1 \xff\xfe 2\r\nok\r\nMSG a 1 2\r\nok\r\n")
    assert [message.data for message in heard] == [b"ok", b"ok"]


async def test_what_is_not_understood_ends_the_connection_and_not_its_reading() -> None:
    with pytest.raises(ProtocolError):
        await _parser([]).parse(b"MSG a x 2\r\nok\r\n")


@pytest.mark.parametrize(
    "changed",
    [
        {"unit": 2**31},
        {"unit": 10**30},
        {"unit": -(2**40)},
        {"unit": float("inf")},
        {"unit": 1.5},
        {"unit": True},
        {"dispatch": 2**63},
        {"dispatch": float("inf")},
    ],
)
def test_a_number_that_postgres_cannot_be_asked_for_is_no_task(changed: dict[str, Any]) -> None:
    """One of them kept all that was claimed in the same statement from starting, for ever."""
    body = {"task": str(uuid4()), "unit": -1, "dispatch": 1} | changed
    with pytest.raises(Malformed):
        parse(json.dumps(body).encode())


@pytest.mark.parametrize("body", [b'"probe"', b'["probe"]', b"[" * 100_000])
def test_what_only_looks_like_a_probe_is_no_task(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse(body)


@pytest.mark.parametrize(
    "changed",
    [
        {"stream_seq": float("inf")},
        {"stream_seq": 2**70},
        {"stream_seq": 0},
        {"consumer": "a\0-normal"},
        {"consumer": "\ud800-normal"},
    ],
)
def test_an_advisory_that_nobody_can_be_asked_about_is_none(changed: dict[str, Any]) -> None:
    """It came again every ten seconds, for ever."""
    body = {"consumer": "default-normal", "stream_seq": 7, "timestamp": "2026-01-01T00:00:00Z"}
    assert parse_advisory(json.dumps(body).encode()).sequence == 7
    with pytest.raises(ValueError, match="advisory"):
        parse_advisory(json.dumps(body | changed).encode())


@pytest.mark.parametrize("place", [["2026-01-01T00:00:00+00:00", "\ud800"], ["0001-01-01T00:00:00+23:59", "17-4"]])
def test_a_forged_page_token_is_refused(place: list[str]) -> None:
    """INTERNAL: the digest in it is no secret, and the place beside it went into a statement."""
    wanted = dead_letter_pb2.DeadLetterFilter()
    digest = page_tokens._digest("ListDeadLetters", wanted)
    token = base64.urlsafe_b64encode(json.dumps([digest, *place]).encode()).decode()
    with pytest.raises(PageTokenInvalid):
        page_tokens.decode(token, "ListDeadLetters", wanted)


def test_reflection_takes_bytes_that_are_no_request_for_one_that_asks_nothing() -> None:
    """UNKNOWN, with a traceback in the log for each."""
    assert reflection._parse(b"\xff\xff") == reflection_pb2.ServerReflectionRequest()
