"""Every method of every service, sent anything, over a socket: refused in words, or done; never broken, never half."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from headrace.v1 import producer_pb2
from tests.fixtures.servers import PostgresSession
from tests.fuzz.rpc_target import PRODUCER, STATUS, Answer, Target, check, serving
from tests.fuzz.trying import attempt_all
from tests.fuzz.wire_forms import Sent, mutated, prefixed, requests

# The services run in a thread beside the strategies, and spread their retries with random numbers.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the .random. module")

GROWTH_BYTES = 200 * 1024 * 1024
"""What the process may have grown by after all inputs: some of them are megabytes, of which none may stay."""
MOMENTS = (
    "2026-01-01T00:00:00+00:00",
    "2026-01-01T00:00:00",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59",
    "2026-W01-1T00:00+00:00",
    "2026-01-01T00:00:00.0000001+00:00",
    "2026-01-01T00:00:00+00:00:30.5",
    "now",
    "",
)
IDS = ("\ud800", "\0", "17-4", "x" * 300, "%s", "ä")


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """One pair of services for all of them: what one input leaves behind meets the next."""
    session: PostgresSession = request.getfixturevalue("postgres_session")
    template: str = request.getfixturevalue("migrated_template")
    url = session.loop.run(session.server.create_database("fuzzed", template=template))
    try:
        with serving(url) as found:
            yield found
    finally:
        session.loop.run(session.server.drop_database("fuzzed"))


def _methods(service: ServiceDescriptor) -> list[MethodDescriptor]:
    return list(service.methods)


@pytest.mark.parametrize("service", [*PRODUCER, *STATUS], ids=lambda service: service.name)
def test_anything_is_answered_in_words_and_what_is_refused_changes_nothing(
    request: pytest.FixtureRequest, target: Target, service: ServiceDescriptor
) -> None:
    target.seed()
    sent = st.one_of(
        [st.tuples(st.just(method), requests(method.input_type, target.known)) for method in _methods(service)]
    )
    before = _resident()

    def one(choice: tuple[MethodDescriptor, Sent]) -> None:
        method, data = choice
        if service in PRODUCER:
            check(_answer_without_effect(target, method, data), method.name)
        else:
            check(target.send(method, data), method.name)

    attempt_all(request, sent, one, inputs=250)
    assert _resident() - before < GROWTH_BYTES
    _still_serves(target)


def test_health_and_reflection_survive_anything(request: pytest.FixtureRequest, target: Target) -> None:
    bodies = st.binary(max_size=64) | st.builds(prefixed, st.integers(1, 8), st.binary(max_size=64) | st.just(b"\xff"))
    paths = st.sampled_from(
        [
            ("/grpc.health.v1.Health/Check", False),
            ("/grpc.health.v1.Health/Watch", True),
            ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True),
        ]
    )

    def one(choice: tuple[str, tuple[str, bool], bytes]) -> None:
        side, (path, streaming), data = choice
        answer = target.call(side, path, data, streaming=streaming)
        assert answer.code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (path, answer)
        assert not any(word in answer.message for word in ("Traceback", "Exception", "Error(")), answer

    attempt_all(request, st.tuples(st.sampled_from(["producer", "status"]), paths, bodies), one, inputs=200)
    _still_serves(target)


def test_a_method_that_is_none_is_unimplemented(request: pytest.FixtureRequest, target: Target) -> None:
    word = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30)
    real = {method.name for service in PRODUCER for method in service.methods}
    path = st.one_of(
        st.builds("/{}/{}".format, word, word),
        word.filter(lambda name: name not in real).map("/headrace.v1.ProducerService/{}".format),
        st.sampled_from(
            ["/", "//", "/headrace.v1.ProducerService/SubmitTask/", "/headrace.v1.producerservice/SubmitTask"]
        ),
    )

    def one(choice: tuple[str, bytes]) -> None:
        name, data = choice
        answer = target.call("producer", name, data)
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED, (name, answer)

    attempt_all(request, st.tuples(path, st.binary(max_size=20)), one, inputs=150)
    _still_serves(target)


def test_metadata_of_any_kind_changes_no_answer(request: pytest.FixtureRequest, target: Target) -> None:
    key = st.from_regex(r"[a-z0-9_.-]{1,20}", fullmatch=True).filter(lambda name: not name.startswith("grpc-"))
    text = st.tuples(
        key.filter(lambda name: not name.endswith("-bin")), st.text(st.characters(min_codepoint=32, max_codepoint=126))
    )
    binary = st.tuples(key.map("{}-bin".format), st.binary(max_size=60))
    odd = st.sampled_from(
        [
            ("authorization", "Bearer x"),
            ("traceparent", "00-zz"),
            ("traceparent", "x" * 500),
            ("te", "x"),
            ("baggage", "a=" * 200),
        ]
    )
    (method,) = (found for found in PRODUCER[0].methods if found.name == "SubmitTask")
    data = producer_pb2.SubmitTaskRequest(kind="plain", idempotency_key="the same").SerializeToString()

    def one(metadata: list[Any]) -> None:
        answer = target.send(method, data, tuple(metadata))
        assert answer.code is grpc.StatusCode.OK, (metadata, answer)

    attempt_all(request, st.lists(st.one_of(text, binary, odd), max_size=8), one, inputs=150)


def test_page_tokens_that_were_changed_are_refused_in_words(request: pytest.FixtureRequest, target: Target) -> None:
    """Also those whose digest is right: it is no secret, so what it stands beside may be anything."""
    target.seed()
    given = target.page_token("ListDeadLetters")
    digest = json.loads(base64.urlsafe_b64decode(given))[0]
    places = st.tuples(st.sampled_from(MOMENTS), st.sampled_from(IDS) | st.text(max_size=5) | st.integers() | st.none())
    forged = places.map(lambda place: base64.urlsafe_b64encode(json.dumps([digest, *place]).encode()).decode())
    texts = st.one_of(
        forged,
        mutated(st.just(given.encode())).map(lambda token: token.decode("utf-8", "replace")),
        st.just(target.page_token("ListTasks")),
        mutated(st.just(target.page_token("ListTasks").encode())).map(lambda token: token.decode("utf-8", "replace")),
        st.text(max_size=2000),
        st.binary(max_size=100).map(lambda raw: base64.urlsafe_b64encode(raw).decode()),
        st.just(base64.urlsafe_b64encode(b"[" * 768).decode()),
    )
    lists = [PRODUCER[1].methods_by_name["ListDeadLetters"], STATUS[0].methods_by_name["ListTasks"]]

    def one(choice: tuple[MethodDescriptor, str]) -> None:
        method, token = choice
        sent = GetMessageClass(method.input_type)(page_token=token, page_size=1)
        check(target.send(method, sent.SerializeToString()), method.name)

    attempt_all(request, st.tuples(st.sampled_from(lists), texts), one, inputs=400)
    _still_serves(target)


def _answer_without_effect(target: Target, method: MethodDescriptor, data: bytes) -> Answer:
    """The answer; a refusal that changed something is repeated, so that what else happens is not taken for it."""
    changed = ""
    for _ in range(3):
        before = target.state()
        answer = target.send(method, data)
        if answer.code is grpc.StatusCode.OK or target.state() == before:
            return answer
        changed = f"{method.name} was refused ({answer.code}, {answer.message}) and changed something"
    raise AssertionError(changed)


def _still_serves(target: Target) -> None:
    (submit,) = (found for found in PRODUCER[0].methods if found.name == "SubmitTask")
    accepted = target.send(submit, producer_pb2.SubmitTaskRequest(kind="plain").SerializeToString())
    assert accepted.code is grpc.StatusCode.OK, accepted
    (listing,) = (found for found in STATUS[0].methods if found.name == "ListTasks")
    assert target.send(listing, b"").code is grpc.StatusCode.OK


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
