"""Values that no part could carry: in a batch, in a payload, in a result. Each fails alone, and says why."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pydantic
import pytest
import pytest_asyncio
from google.protobuf.struct_pb2 import Struct

from headrace import Client
from headrace.errors import HeadraceError, InvalidFieldsError
from headrace.v1 import producer_pb2, task_pb2
from tests.fixtures.consumers import ConsumerRig
from tests.producer_harness import Harness, refused, running_producer, unpacked

GOOD = b'{"n":1}'
HALF_PAIR = b"\xed\xa0\x80"
"""U+D800 as if it were UTF-8: what a client in a careless language sends."""

TEXTS: list[tuple[str, bytes, str]] = [
    ("NUL", rb'{"a":"\u0000"}', "the character NUL"),
    ("raw NUL", b'{"a":"\0"}', "not JSON"),
    ("NaN", b'{"a":NaN}', "NaN, which is no JSON"),
    ("Infinity", b'{"a":-Infinity}', "-Infinity, which is no JSON"),
    ("lone surrogate", rb'{"a":"\ud800"}', "half a surrogate pair"),
    ("raw surrogate", b'{"a":"' + HALF_PAIR + b'"}', "not UTF-8"),
    ("20,000 levels", b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "at most 32 levels"),
    ("1e200000", b'{"a":1e200000}', "beyond the range of a double"),
    ("too large", b'{"a":"' + b"x" * 1024 * 1024 + b'"}', "at most 1048576 are allowed"),
    ("no object", b"[1]", "must be a JSON object"),
]


def field(number: int, content: bytes) -> bytes:
    """A length-prefixed field on the wire."""
    size, prefix = len(content), bytearray()
    while size > 0x7F:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *prefix, size]) + content


def a_struct(value: bytes) -> bytes:
    """A Struct {"a": value} on the wire; `value` is a Value on the wire."""
    return field(1, field(1, b"a") + field(2, value))


def nested_struct(levels: int) -> bytes:
    wire = a_struct(b"\x20\x01")  # bool_value: true
    for _ in range(levels - 1):
        wire = a_struct(field(5, wire))
    return wire


def number(value: float) -> bytes:
    struct = Struct()
    struct["a"] = value
    return struct.SerializeToString()


# Protobuf's own parser refuses the last three and takes the whole message with it.
STRUCTS: list[tuple[str, bytes, str]] = [
    ("NaN", number(float("nan")), "NaN, which is no JSON"),
    ("Infinity", number(float("inf")), "Infinity, which is no JSON"),
    ("NUL", a_struct(field(3, b"\0")), "the character NUL"),
    ("too large", a_struct(field(3, b"x" * 1024 * 1024)), "at most 1048576 are allowed"),
    ("33 levels", nested_struct(33), "at most 32 levels"),
    ("lone surrogate", a_struct(field(3, HALF_PAIR)), "not UTF-8"),
    ("40 levels", nested_struct(40), "at most 32 levels"),
    ("20,000 levels", nested_struct(20_000), "at most 32 levels"),
]


@pytest_asyncio.fixture
async def producer(database_url: str) -> AsyncIterator[Harness]:
    async with running_producer(database_url) as harness:
        yield harness


def by_text(text: bytes) -> bytes:
    return field(2, b"plain") + field(5, text)


def by_struct(struct: bytes) -> bytes:
    return field(2, b"plain") + field(4, struct)


async def submit_among_99_good_ones(producer: Harness, bad: bytes) -> Any:
    """The error of the bad request at place 50; the others must have been accepted, each once."""
    requests = [field(1, by_text(GOOD)) for _ in range(99)]
    requests.insert(50, field(1, bad))
    call: Any = producer.channel.unary_unary("/headrace.v1.ProducerService/SubmitTasks")
    response = producer_pb2.SubmitTasksResponse.FromString(await call(b"".join(requests), timeout=20))
    assert len(response.results) == 100
    errors = [index for index, result in enumerate(response.results) if result.HasField("error")]
    assert errors == [50]
    ids = {result.response.task.id for result in response.results if result.response.created}
    assert len(ids) == 99
    return unpacked(grpc.StatusCode.INVALID_ARGUMENT, response.results[50].error)


@pytest.mark.parametrize(("text", "said"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
async def test_a_bad_text_in_a_batch_fails_alone(producer: Harness, text: bytes, said: str) -> None:
    refusal = await submit_among_99_good_ones(producer, by_text(text))
    assert (refusal.reason, refusal.fields) == ("INVALID_FIELDS", ["payload_json"])
    assert said in refusal.message
    alone = await refused(producer.submit(payload_json=text))
    assert (alone.code, alone.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["payload_json"])
    assert said in alone.message


@pytest.mark.parametrize(("struct", "said"), [case[1:] for case in STRUCTS], ids=[case[0] for case in STRUCTS])
async def test_a_bad_struct_in_a_batch_fails_alone(producer: Harness, struct: bytes, said: str) -> None:
    refusal = await submit_among_99_good_ones(producer, by_struct(struct))
    assert (refusal.reason, refusal.fields) == ("INVALID_FIELDS", ["payload"])
    assert said in refusal.message
    call: Any = producer.channel.unary_unary("/headrace.v1.ProducerService/SubmitTask")
    alone = await refused(call(by_struct(struct)))
    assert (alone.code, alone.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["payload"])
    assert said in alone.message


@pytest.mark.parametrize(
    ("bad", "fields"),
    [
        (field(2, HALF_PAIR) + field(3, HALF_PAIR), ["kind", "queue"]),
        (by_text(GOOD) + field(7, field(1, b"k") + field(2, HALF_PAIR)), ["labels"]),
        (by_text(GOOD) + field(6, HALF_PAIR), ["idempotency_key"]),
    ],
)
async def test_every_field_that_cannot_be_read_is_named(producer: Harness, bad: bytes, fields: list[str]) -> None:
    refusal = await submit_among_99_good_ones(producer, bad)
    assert (refusal.reason, refusal.fields) == ("INVALID_FIELDS", fields)


@pytest.mark.parametrize("bad", [b"\xff\xff\xff", b"\x0a\x05", b"\x0b", b"\x12\xff", b"\x00" * 5000])
async def test_a_request_that_is_no_message_fails_alone(producer: Harness, bad: bytes) -> None:
    refusal = await submit_among_99_good_ones(producer, bad)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.parametrize("bad", [b"\x0a\xff", field(1, by_text(GOOD)) + b"\x0a", b"\xff" * 11])
async def test_a_batch_that_is_no_message_is_refused_whole(producer: Harness, bad: bytes) -> None:
    call: Any = producer.channel.unary_unary("/headrace.v1.ProducerService/SubmitTasks")
    refusal = await refused(call(bad))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    (row,) = await producer.db.fetch("select count(*) as n from headrace_core.units")
    assert row["n"] == 0


class Loose(pydantic.BaseModel):
    """A model whose type does not say what is in it."""

    value: Any


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def a_deep_request() -> producer_pb2.SubmitTaskRequest:
    request = producer_pb2.SubmitTaskRequest(kind="plain")
    inner = request.payload
    for _ in range(200):
        inner = inner.fields["a"].struct_value
    return request


VALUES: list[tuple[str, Any, str]] = [
    ("NUL", {"a": "\0"}, "NUL"),
    ("NaN", {"a": float("nan")}, "no JSON"),
    ("NaN in a model", Loose(value=[float("nan")]), "no JSON"),
    ("Infinity in a model", Loose(value={"b": float("-inf")}), "no JSON"),
    ("lone surrogate", {"a": "\ud800"}, "surrogate"),
    ("33 levels", deep(33), "32 levels"),
    ("20,000 levels", deep(20_000), "32 levels"),
    ("20,000 levels in a model", Loose(value=deep(20_000)), "no JSON"),
    ("10**400", {"a": 10**400}, "beyond the range of a double"),
    ("10**5000", {"a": 10**5000}, "no JSON"),
    ("too large", {"a": "x" * 1024 * 1024}, "1,048,576"),
    ("an object", {"a": object()}, "no JSON"),
    ("an object in a model", Loose(value=object()), "no JSON"),
    ("a deep Struct", a_deep_request(), "32 levels"),
]


@pytest.mark.parametrize(("value", "said"), [case[1:] for case in VALUES], ids=[case[0] for case in VALUES])
async def test_the_sdk_refuses_or_reports_a_bad_payload_and_sends_the_others(
    producer: Harness, value: Any, said: str
) -> None:
    items: list[Any] = [{"n": n} for n in range(99)]
    items.insert(50, value)
    async with Client(producer=producer.service.grpc_address) as client:
        outcomes = await client.submit_many(items, kind="plain", return_errors=True)
    failed = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, HeadraceError)]
    assert failed == [50]
    error = outcomes[50]
    assert isinstance(error, InvalidFieldsError)
    assert error.violations[0].field.startswith("payload")
    assert said in error.message
    assert len({task.id for task in outcomes if isinstance(task, task_pb2.Task)}) == 99


async def test_the_sdk_names_half_a_surrogate_pair_outside_of_the_payload(producer: Harness) -> None:
    async with Client(producer=producer.service.grpc_address) as client:
        with pytest.raises(InvalidFieldsError, match="half a surrogate pair"):
            await client.submit("plain", {}, labels={"a": "\ud800"})


def test_a_null_in_a_model_is_no_bad_value() -> None:
    request = Client().request("plain", Loose(value=[None, 1.5]))
    assert json.loads(request.payload_json) == {"value": [None, 1.5]}


# -- results -----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def rig(database_url: str, tmp_path: Path) -> AsyncIterator[ConsumerRig]:
    """A consumer without a broker: values do not care how they were delivered."""
    made = ConsumerRig(database_url, None, tmp_path)
    await made.open()
    await made.consumer(handlers="tests.handlers.bad_values")
    yield made
    await made.close()


RESULTS = {
    "nul": "NUL",
    "nan": "no",
    "infinity": "no",
    "nan-in-a-model": "null",
    "surrogate": "surrogate",
    "deep": "",
    "33-levels": "32 levels",
    "huge-number": "beyond the range of a double",
    "longest-number": "",
    "too-large": "at most 1048576 are allowed",
    "an-object": "object",
}
KINDS = ["bad-async", "bad-thread", "bad-process", "bad-batch"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bad_result_fails_its_task_alone_and_says_why(rig: ConsumerRig, kind: str) -> None:
    values = [*RESULTS, *["good"] * 20]
    tasks = await rig.submit_many(kind, [{"value": value} for value in values])
    rows = [await rig.ended(task, within=30) for task in tasks]
    for value, row in zip(values, rows, strict=True):
        if value == "good":
            assert (row["state"], json.loads(row["result"])) == ("COMPLETED", {"fine": True}), row["error"]
            continue
        assert (row["state"], row["reason"], row["attempt"]) == ("FAILED", "NON_RETRYABLE", 1), (value, row)
        error = json.loads(row["error"])
        assert error["type"] == "ResultRefused"
        assert RESULTS[value] in error["message"], (value, error)


@pytest.mark.parametrize("place", ["plan", "shard", "merge"])
async def test_a_bad_plan_part_or_merge_fails_its_task_and_no_other(rig: ConsumerRig, place: str) -> None:
    bad = await rig.submit_many("bad-shards", [{"place": place, "value": value} for value in RESULTS])
    good = await rig.submit("bad-shards", {"place": "", "value": ""})
    for value, task in zip(RESULTS, bad, strict=True):
        row = await rig.ended(task, within=30)
        assert (row["state"], row["reason"]) == ("FAILED", "NON_RETRYABLE"), value
        assert RESULTS[value] in json.loads(row["error"])["message"], value
    assert await rig.result(good) == {"parts": [{"fine": True}] * 3}


@pytest.mark.parametrize("value", ["plan-too-large", "too-many-shards"])
async def test_a_plan_beyond_its_bounds_fails_its_task(rig: ConsumerRig, value: str) -> None:
    row = await rig.ended(await rig.submit("bad-shards", {"place": "whole-plan", "value": value}), within=30)
    assert (row["state"], row["reason"]) == ("FAILED", "NON_RETRYABLE")
    assert json.loads(row["error"])["message"].split(" are allowed")[0].endswith(("at most 16777216", "at most 10000"))


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_of_bad_texts_is_an_attempt_like_any_other(rig: ConsumerRig, kind: str) -> None:
    """What a handler says of itself is stored, whatever is in it."""
    values = ["raises-bad-text", "raises-bad-reason", "raises-without-text"]
    tasks = await rig.submit_many(kind, [{"value": value} for value in values], max_attempts=1)
    for task in tasks:
        row = await rig.ended(task, within=30)
        assert row["state"] == "FAILED"
        # As every reader takes it apart: Postgres refuses NUL and half pairs there.
        taken_apart = "select error->>'type', error->>'message' from headrace.tasks where id = %(id)s"
        await rig.db.fetch(taken_apart, {"id": task.id})
