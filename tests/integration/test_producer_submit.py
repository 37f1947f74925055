"""Submitting and cancelling over gRPC: what is accepted, what is refused and how, what is known already."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import error_pb2, producer_pb2, task_pb2
from headrace_core.tasks.model import Complete, Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from tests.factories import a_holder, claimed, events_of, row_of
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, refused, running_producer, unpacked

Code = grpc.StatusCode


@pytest_asyncio.fixture
async def producer(database_url: str) -> AsyncIterator[Harness]:
    async with running_producer(database_url) as harness:
        yield harness


def at(**delta: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.now(UTC) + timedelta(**delta))
    return timestamp


def a_struct(value: dict[str, Any]) -> Struct:
    return ParseDict(value, Struct())


async def count_of(producer: Harness) -> int:
    (row,) = await producer.db.fetch("select count(*) as n from headrace_core.units")
    return int(row["n"])


async def test_an_accepted_task_is_committed_as_it_was_sent(producer: Harness) -> None:
    text = b'{ "n" : 9007199254740993, "t": "\xe4\xb8\xad" }'
    run_at, deadline = at(hours=1), at(hours=2)
    response = await producer.submit(
        namespace="team-a",
        payload_json=text,
        labels={"x": "1", "a/b.c": "zwei"},
        priority=task_pb2.PRIORITY_HIGH,
        run_at=run_at,
        deadline=deadline,
        max_attempts=7,
        idempotency_key="k",
    )
    task = response.task
    assert response.created
    assert (task.state, task.generation, task.sequence) == (task_pb2.TASK_STATE_PENDING, 1, 1)
    assert (task.namespace, task.kind, task.queue, task.idempotency_key) == ("team-a", "plain", "default", "k")
    assert (dict(task.labels), task.priority, task.budgets.max_attempts) == ({"x": "1", "a/b.c": "zwei"}, 3, 7)
    assert UUID(task.id).version == 7
    row = await row_of(producer.db, UUID(task.id))
    assert row["payload"] == text
    assert (row["due_at"], row["deadline"]) == (run_at.ToDatetime(UTC), deadline.ToDatetime(UTC))
    assert [event["state"] for event in await events_of(producer.db, UUID(task.id))] == ["PENDING"]


async def test_a_struct_arrives_with_its_whole_numbers_as_ints(producer: Harness) -> None:
    value = {"n": 3, "half": 0.5, "deep": [{"m": -7.0}, None, True, "x"], "big": 1e300}
    task = (await producer.submit(payload=a_struct(value))).task
    stored = json.loads((await row_of(producer.db, UUID(task.id)))["payload"])
    assert stored == value
    assert isinstance(stored["n"], int)
    assert isinstance(stored["deep"][0]["m"], int)
    empty = (await producer.submit()).task
    assert (await row_of(producer.db, UUID(empty.id)))["payload"] == b"{}"


async def test_every_violation_is_said_at_once_and_nothing_changes(producer: Harness) -> None:
    refusal = await refused(
        producer.submit(
            namespace="Nope!",
            kind="",
            queue="white space",
            payload_json=b"[NaN]",
            idempotency_key="",
            labels={"bad key": "x" * 300, "nul": "\0"},
            priority=9,
            run_at=at(hours=-1),
            deadline=at(hours=-2),
            max_attempts=101,
        )
    )
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELDS")
    assert set(refusal.fields) == {
        "namespace", "kind", "queue", "payload_json", "idempotency_key", 'labels["bad key"]', 'labels["nul"]',
        "priority", "run_at", "deadline", "max_attempts",
    }  # fmt: skip
    assert await count_of(producer) == 0


def nested(levels: int) -> bytes:
    return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)


BAD: list[tuple[dict[str, Any], Code, str, list[str]]] = [
    ({"payload_json": b"[]"}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["payload_json"]),
    (
        {"payload_json": b'{"a":"' + b"x" * 1024 * 1024 + b'"}'},
        Code.INVALID_ARGUMENT,
        "INVALID_FIELDS",
        ["payload_json"],
    ),
    ({"payload_json": nested(33)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["payload_json"]),
    ({"payload_json": b'{"a":1e200000}'}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["payload_json"]),
    ({"payload_json": rb'{"a":"\ud800"}'}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["payload_json"]),
    ({"payload": a_struct({"a": float("nan")})}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["payload"]),
    ({"payload": a_struct({"a": "\0"})}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["payload"]),
    ({"kind": "checked", "payload_json": b'{"n":"x"}'}, Code.INVALID_ARGUMENT, "PAYLOAD_MISMATCH", ["payload.n"]),
    ({"kind": "checked"}, Code.INVALID_ARGUMENT, "PAYLOAD_MISMATCH", ["payload"]),
    ({"kind": "nobody"}, Code.NOT_FOUND, "UNKNOWN_KIND", []),
    ({"queue": "nowhere"}, Code.NOT_FOUND, "UNKNOWN_QUEUE", []),
    ({"run_at": at(minutes=-2)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["run_at"]),
    ({"run_at": at(days=3650)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["run_at"]),
    ({"run_at": Timestamp(seconds=10**15)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["run_at"]),
    ({"deadline": Timestamp(nanos=-1)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["deadline"]),
    ({"deadline": at(seconds=-1)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["deadline"]),
    ({"run_at": at(hours=2), "deadline": at(hours=1)}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["deadline"]),
    ({"idempotency_key": "k" * 257}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["idempotency_key"]),
    ({"idempotency_key": "\0"}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["idempotency_key"]),
    ({"labels": {f"k{i}": "" for i in range(33)}}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["labels"]),
    ({"max_attempts": 0}, Code.INVALID_ARGUMENT, "INVALID_FIELDS", ["max_attempts"]),
]


async def test_bad_requests_are_refused_precisely_and_change_nothing(producer: Harness) -> None:
    for fields, code, reason, places in BAD:
        refusal = await refused(producer.submit(**fields))
        assert (refusal.code, refusal.reason, refusal.fields) == (code, reason, places), refusal.message
    assert await count_of(producer) == 0


async def test_the_same_bad_requests_are_refused_one_by_one_in_a_batch(producer: Harness) -> None:
    requests = [
        producer_pb2.SubmitTaskRequest(**({"kind": "plain"} | fields)) for fields, *_ in BAD if len(str(fields)) < 9000
    ]
    good = producer_pb2.SubmitTaskRequest(kind="checked", payload_json=b'{"n":1}')
    response = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=[good, *requests, good]))
    first, *errors, last = response.results
    assert first.response.created
    assert last.response.created
    assert first.response.task.id < last.response.task.id
    expected = [(code, reason) for fields, code, reason, _ in BAD if len(str(fields)) < 9000]
    found = [unpacked(Code.OK, result.error) for result in errors]
    codes = {code.value[0]: code for code in Code}
    assert [(codes[r.error.code], refusal.reason) for r, refusal in zip(errors, found, strict=True)] == expected
    assert await count_of(producer) == 2


@pytest.mark.parametrize("count", [0, 1001])
async def test_a_batch_has_1_to_1000_requests(producer: Harness, count: int) -> None:
    requests = [producer_pb2.SubmitTaskRequest(kind="plain")] * count
    refusal = await refused(producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=requests)))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["requests"])


async def test_a_full_batch_is_accepted_in_order(producer: Harness) -> None:
    requests = [producer_pb2.SubmitTaskRequest(kind="plain", labels={"i": str(i)}) for i in range(1000)]
    response = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=requests))
    tasks = [result.response.task for result in response.results]
    assert [task.labels["i"] for task in tasks] == [str(i) for i in range(1000)]
    assert all(one.id < other.id for one, other in itertools.pairwise(tasks))
    assert await count_of(producer) == 1000


async def test_bytes_that_are_no_message_are_an_invalid_argument(producer: Harness) -> None:
    call: Any = producer.channel.unary_unary("/headrace.v1.ProducerService/SubmitTask")
    refusal = await refused(call(b"\xff\xff\xff"))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_the_same_key_brings_the_same_task_whatever_has_changed_since(producer: Harness) -> None:
    fields: dict[str, Any] = {
        "queue": "tiny",
        "idempotency_key": "k",
        "run_at": at(seconds=0.2),
        "payload_json": b'{"n":1}',
    }
    fields |= {"kind": "checked"}
    first = await producer.submit(**fields)
    await producer.submit(queue="tiny")
    assert (await refused(producer.submit(queue="tiny"))).reason == "BACKLOG_FULL"
    await producer.db.fetch("delete from headrace_core.kinds where kind = 'checked' returning 1")
    await eventually(lambda: kind_is_gone(producer))
    again = await producer.submit(**fields)
    assert (again.created, again.task.id) == (False, first.task.id)
    other = await refused(producer.submit(**(fields | {"payload_json": b'{"n":2}'})))
    assert (other.code, other.reason) == (Code.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert (await refused(producer.submit(**(fields | {"namespace": "elsewhere"})))).reason == "UNKNOWN_KIND"


async def kind_is_gone(producer: Harness) -> bool:
    return (await refused(producer.submit(kind="checked"))).reason == "UNKNOWN_KIND"


async def test_a_repeated_request_is_known_long_after_its_times_have_passed(producer: Harness) -> None:
    sent = {"idempotency_key": "k", "run_at": at(hours=-1), "deadline": at(minutes=-30)}
    task = (await producer.submit(idempotency_key="k")).task
    assert (await refused(producer.submit(**sent))).reason == "IDEMPOTENCY_KEY_REUSED"
    # As if the very request had been accepted an hour ago.
    await producer.db.fetch(
        "update headrace_core.units set fingerprint = %(print)s where task_id = %(id)s returning 1",
        {"id": UUID(task.id), "print": fingerprint_of(**sent)},
    )
    assert (await producer.submit(**sent)).created is False


def fingerprint_of(**fields: Any) -> bytes:
    from producer.validation import _fingerprint  # noqa: PLC0415 - what a submit an hour ago would have stored

    return _fingerprint(producer_pb2.SubmitTaskRequest(kind="plain", **fields), b"{}")


@pytest.mark.parametrize(
    "change",
    [{"kind": "sharded"}, {"queue": "default"}, {"labels": {"a": "b"}}, {"priority": 2}, {"max_attempts": 3},
     {"run_at": Timestamp(seconds=4000000000)}, {"deadline": at(days=2)}, {"payload_json": b"{ }"},
     {"payload": Struct()}],
)  # fmt: skip
async def test_every_field_belongs_to_the_request_that_a_key_stands_for(
    producer: Harness, change: dict[str, Any]
) -> None:
    await producer.submit(idempotency_key="k")
    refusal = await refused(producer.submit(**({"idempotency_key": "k"} | change)))
    assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_labels_have_no_order(producer: Harness) -> None:
    labels = {f"k{i}": str(i) for i in range(20)}
    first = await producer.submit(idempotency_key="k", labels=labels)
    again = await producer.submit(idempotency_key="k", labels=dict(reversed(labels.items())))
    assert (again.created, again.task.id) == (False, first.task.id)


async def test_a_crowd_with_one_key_gets_one_task(producer: Harness) -> None:
    answers = await asyncio.gather(*(producer.submit(idempotency_key="k") for _ in range(100)))
    assert len({answer.task.id for answer in answers}) == 1
    assert sum(answer.created for answer in answers) == 1
    assert await count_of(producer) == 1


async def test_one_key_twice_in_one_batch_is_one_task(producer: Harness) -> None:
    one = producer_pb2.SubmitTaskRequest(kind="plain", idempotency_key="k")
    other = producer_pb2.SubmitTaskRequest(kind="plain", idempotency_key="k", labels={"a": "b"})
    response = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=[one, one, other]))
    first, second, third = response.results
    assert (first.response.created, second.response.created) == (True, False)
    assert first.response.task.id == second.response.task.id
    assert third.error.code == Code.ALREADY_EXISTS.value[0]


async def test_a_queue_with_too_many_dead_letters_refuses(producer: Harness) -> None:
    task = (await producer.submit(queue="choked")).task
    unit = await claimed(producer.db, a_holder(), UUID(task.id))
    error = error_json("NON_RETRYABLE", "E", "x")
    await settle(producer.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)])

    async def is_choked() -> bool:
        try:
            await producer.submit(queue="choked")
        except grpc.aio.AioRpcError:
            return True
        return False

    await eventually(is_choked)
    refusal = await refused(producer.submit(queue="choked"))
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "DEAD_LETTERS_FULL")
    assert refusal.retry_after is not None
    await producer.submit()


async def test_a_full_queue_says_when_to_try_again(producer: Harness) -> None:
    for _ in range(2):
        await producer.submit(queue="tiny")
    refusal = await refused(producer.submit(queue="tiny"))
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "BACKLOG_FULL")
    assert refusal.retry_after is not None


async def test_a_kind_registered_a_moment_ago_is_known_at_once(producer: Harness) -> None:
    assert (await refused(producer.submit(kind="new"))).reason == "UNKNOWN_KIND"
    await producer.db.fetch(
        "insert into headrace_core.kinds (kind, schema_hash, queue) values ('new', '-', 'tiny') returning 1"
    )
    task = (await eventually(lambda: producer.submit(kind="new"), ignoring=(grpc.aio.AioRpcError,))).task
    assert task.queue == "tiny"


async def test_of_several_schemas_one_must_fit(producer: Harness) -> None:
    await producer.db.fetch(
        "insert into headrace_core.kinds (kind, schema_hash, schema, queue) values"
        """ ('checked', 'h2', '{"type":"object","required":["m"]}', 'default') returning 1"""
    )
    await eventually(lambda: producer.submit(kind="checked", payload_json=b'{"m":1}'), ignoring=(grpc.aio.AioRpcError,))
    await producer.submit(kind="checked", payload_json=b'{"n":1}')
    assert (await refused(producer.submit(kind="checked", payload_json=b'{"o":1}'))).reason == "PAYLOAD_MISMATCH"


async def test_a_cancelled_task_stays_cancelled(producer: Harness) -> None:
    task = (await producer.submit()).task
    for _ in range(2):
        response = await producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=task.id))
        assert response.task.state == task_pb2.TASK_STATE_CANCELLED
        assert response.task.reason == error_pb2.REASON_CANCELLED_BY_CLIENT
        assert response.task.sequence == 2


async def test_what_cannot_be_cancelled(producer: Harness) -> None:
    async def cancel(id: str) -> tuple[Code, str]:
        refusal = await refused(producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=id)))
        return refusal.code, refusal.reason

    assert await cancel("not-a-uuid") == (Code.INVALID_ARGUMENT, "INVALID_FIELDS")
    assert await cancel("") == (Code.INVALID_ARGUMENT, "INVALID_FIELDS")
    assert await cancel(str(uuid4())) == (Code.NOT_FOUND, "TASK_NOT_FOUND")
    task = (await producer.submit()).task
    unit = await claimed(producer.db, a_holder(), UUID(task.id))
    await settle(producer.db, [Complete(unit.lease, b"1")])
    assert await cancel(task.id) == (Code.FAILED_PRECONDITION, "TASK_TERMINAL")
    assert (await row_of(producer.db, UUID(task.id)))["state"] == "COMPLETED"
