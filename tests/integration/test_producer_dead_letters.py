"""DeadLetterService over gRPC: one, many, by filter; rate, dry run, new payload; refusals that change nothing."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.v1 import dead_letter_pb2 as pb
from headrace.v1 import error_pb2, task_pb2
from headrace_core.tasks.dead_letters import record_unparseable
from headrace_core.tasks.model import Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from tests.factories import a_holder, claimed, row_of
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, refused, running_producer

Code = grpc.StatusCode
NO_REASON: Any = 999


@pytest_asyncio.fixture
async def producer(database_url: str) -> AsyncIterator[Harness]:
    async with running_producer(database_url) as harness:
        yield harness


def at(**delta: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.now(UTC) + timedelta(**delta))
    return timestamp


async def failed(producer: Harness, **fields: Any) -> str:
    """The id of a task that has failed."""
    task = (await producer.submit(**fields)).task
    unit = await claimed(producer.db, a_holder(kinds=("plain", "checked")), UUID(task.id))
    error = error_json("NON_RETRYABLE", "ValueError", "boom")
    await settle(producer.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)])
    return task.id


async def states(producer: Harness, ids: list[str]) -> list[str]:
    return [(await row_of(producer.db, UUID(task_id)))["state"] for task_id in ids]


async def redrive(producer: Harness, **fields: Any) -> pb.RedriveDeadLettersResponse:
    response: pb.RedriveDeadLettersResponse = await producer.letters.RedriveDeadLetters(
        pb.RedriveDeadLettersRequest(**fields), timeout=10
    )
    return response


async def test_a_dead_letter_shows_what_failed_and_how(producer: Harness) -> None:
    task_id = await failed(producer, payload_json=b'{"a": 1}', namespace="team")
    by_task = await producer.letters.GetDeadLetter(pb.GetDeadLetterRequest(id=task_id))
    letter = by_task.dead_letter
    assert (letter.id, letter.task_id, letter.generation) == (f"{task_id}-1", task_id, 1)
    assert (letter.namespace, letter.queue, letter.kind) == ("team", "default", "plain")
    assert (letter.reason, letter.error.type, letter.error.message) == (
        error_pb2.REASON_NON_RETRYABLE,
        "ValueError",
        "boom",
    )
    assert letter.payload_json == b'{"a": 1}'
    assert [(attempt.attempt, attempt.outcome) for attempt in letter.attempts] == [(1, task_pb2.TASK_STATE_FAILED)]
    assert (letter.budgets.failures, letter.budgets.max_attempts) == (1, 3)
    assert letter.resolution == pb.DEAD_LETTER_RESOLUTION_UNSPECIFIED
    by_id = await producer.letters.GetDeadLetter(pb.GetDeadLetterRequest(id=letter.id))
    assert by_id.dead_letter == letter


async def test_pages_are_walked_with_tokens_of_their_own_filter(producer: Harness) -> None:
    ids = [await failed(producer, namespace="a" if index % 2 else "b") for index in range(5)]
    found: list[str] = []
    token = ""
    while True:
        page = await producer.letters.ListDeadLetters(pb.ListDeadLettersRequest(page_size=2, page_token=token))
        found += [letter.task_id for letter in page.dead_letters]
        token = page.next_page_token
        if not token:
            break
        foreign = pb.ListDeadLettersRequest(page_size=2, page_token=token, filter=pb.DeadLetterFilter(queue="default"))
        assert (await refused(producer.letters.ListDeadLetters(foreign))).reason == "PAGE_TOKEN_INVALID"
    assert found == ids[::-1]
    for strange in ("x", "AAAA", token + "é", "W10=", "bnVsbA=="):
        refusal = await refused(producer.letters.ListDeadLetters(pb.ListDeadLettersRequest(page_token=strange)))
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
    named = pb.DeadLetterFilter(namespace="a", reason=error_pb2.REASON_NON_RETRYABLE, failed_before=at(minutes=1))
    page = await producer.letters.ListDeadLetters(pb.ListDeadLettersRequest(filter=named))
    assert [letter.task_id for letter in page.dead_letters] == [ids[3], ids[1]]


async def test_a_redriven_task_is_pending_in_its_next_generation(producer: Harness) -> None:
    task_id = await failed(producer)
    before = (await row_of(producer.db, UUID(task_id)))["sequence"]
    response = await redrive(producer, ids=[task_id])
    assert (response.matched, response.redriven, response.skipped) == (1, 1, 0)
    (task,) = response.tasks
    assert (task.state, task.generation, task.sequence) == (task_pb2.TASK_STATE_PENDING, 2, before + 1)
    assert (task.reason, task.budgets.failures, task.attempts) == (error_pb2.REASON_REDRIVEN, 0, 0)
    again = await refused(redrive(producer, ids=[f"{task_id}-1"]))
    assert (again.code, again.reason) == (Code.FAILED_PRECONDITION, "DEAD_LETTER_RESOLVED")


async def test_one_bad_id_refuses_the_whole_call(producer: Harness) -> None:
    good = await failed(producer)
    for bad, code, reason in (
        (str(uuid4()), Code.NOT_FOUND, "DEAD_LETTER_NOT_FOUND"),
        (f"{uuid4()}-1", Code.NOT_FOUND, "DEAD_LETTER_NOT_FOUND"),
        ("no id at all", Code.INVALID_ARGUMENT, "INVALID_FIELDS"),
    ):
        for call in (
            redrive(producer, ids=[good, bad]),
            producer.letters.DiscardDeadLetters(pb.DiscardDeadLettersRequest(ids=[good, bad])),
        ):
            refusal = await refused(call)
            assert (refusal.code, refusal.reason) == (code, reason)
    assert await states(producer, [good]) == ["FAILED"]


async def test_requests_that_make_no_sense_are_refused(producer: Harness) -> None:
    task_id = await failed(producer)
    everything = pb.DeadLetterFilter()
    for fields, places in (
        ({}, ["ids"]),
        ({"ids": [task_id], "filter": everything}, ["ids"]),
        ({"ids": [task_id] * 1001}, ["ids"]),
        ({"filter": everything, "payload_json": b"{}"}, ["payload_json"]),
        ({"ids": [task_id], "payload_json": b"[]"}, ["payload_json"]),
        ({"ids": [task_id], "rate": -1}, ["rate"]),
        ({"ids": [task_id], "rate": float("nan")}, ["rate"]),
        ({"ids": [task_id], "rate": 0.001}, ["rate"]),
        ({"ids": [task_id], "deadline": at(hours=-1)}, ["deadline"]),
        ({"filter": pb.DeadLetterFilter(queue="\0"), "rate": -1}, ["filter.queue", "rate"]),
        ({"filter": pb.DeadLetterFilter(reason=NO_REASON)}, ["filter.reason"]),
    ):
        refusal = await refused(redrive(producer, **fields))
        assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, places), refusal.message
    too_large = pb.ListDeadLettersRequest(page_size=1001)
    assert (await refused(producer.letters.ListDeadLetters(too_large))).fields == ["page_size"]
    assert await states(producer, [task_id]) == ["FAILED"]


async def test_a_dry_run_counts_and_changes_nothing(producer: Harness) -> None:
    ids = [await failed(producer) for _ in range(3)]
    response = await redrive(producer, filter=pb.DeadLetterFilter(), dry_run=True)
    assert (response.matched, response.redriven, response.skipped, len(response.tasks)) == (3, 0, 0, 0)
    discard = pb.DiscardDeadLettersRequest(filter=pb.DeadLetterFilter(), dry_run=True)
    response = await producer.letters.DiscardDeadLetters(discard)
    assert (response.matched, response.discarded) == (3, 0)
    assert await states(producer, ids) == ["FAILED"] * 3


async def test_a_filter_redrives_what_can_be_and_counts_the_rest(producer: Harness) -> None:
    ids = [await failed(producer, namespace="team") for _ in range(3)]
    elsewhere = await failed(producer)
    await producer.db.fetch(
        "update headrace_core.units set deadline = now() where task_id = %(id)s returning 1", {"id": UUID(ids[0])}
    )
    await record_unparseable(producer.db, "17-1", "default", b"junk", "no JSON")
    response = await redrive(producer, filter=pb.DeadLetterFilter(namespace="team"))
    assert (response.matched, response.redriven, response.skipped) == (3, 2, 1)
    assert await states(producer, [*ids, elsewhere]) == ["FAILED", "PENDING", "PENDING", "FAILED"]
    rest = await redrive(producer, filter=pb.DeadLetterFilter(), deadline=at(hours=1))
    assert (rest.matched, rest.redriven, rest.skipped) == (3, 2, 1)
    refusal = await refused(redrive(producer, ids=["17-1"]))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["ids"])


async def test_a_passed_deadline_is_said_and_a_new_one_helps(producer: Harness) -> None:
    task_id = await failed(producer)
    await producer.db.fetch(
        "update headrace_core.units set deadline = now() where task_id = %(id)s returning 1", {"id": UUID(task_id)}
    )
    refusal = await refused(redrive(producer, ids=[task_id]))
    assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "DEADLINE_PASSED")
    ahead = at(hours=1)
    assert (await redrive(producer, ids=[task_id], deadline=ahead)).tasks[0].deadline == Timestamp(
        seconds=ahead.seconds, nanos=ahead.nanos // 1000 * 1000
    )


async def test_a_new_payload_must_fit_the_kind(producer: Harness) -> None:
    task_id = await failed(producer, kind="checked", payload_json=b'{"n":1}')
    refusal = await refused(redrive(producer, ids=[task_id], payload_json=b'{"n":"x"}'))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "PAYLOAD_MISMATCH")
    await redrive(producer, ids=[task_id], payload_json=b'{"n": 2}')
    assert (await row_of(producer.db, UUID(task_id)))["payload"] == b'{"n": 2}'


async def test_with_a_rate_they_come_back_bit_by_bit(producer: Harness) -> None:
    ids = [await failed(producer) for _ in range(4)]
    response = await redrive(producer, filter=pb.DeadLetterFilter(), rate=2)
    assert (response.matched, response.redriven) == (4, 1)
    assert (await states(producer, ids)).count("FAILED") >= 2
    # What waits for its turn is not matched again.
    assert (await redrive(producer, filter=pb.DeadLetterFilter(), dry_run=True)).matched <= 3
    await eventually(lambda: all_are(producer, ids, "PENDING"))
    rows = [await row_of(producer.db, UUID(task_id)) for task_id in ids]
    times = sorted(row["updated_at"] for row in rows)
    assert times[-1] - times[0] >= timedelta(seconds=1)


async def all_are(producer: Harness, ids: list[str], state: str) -> bool:
    return set(await states(producer, ids)) == {state}


async def test_a_discard_is_for_good(producer: Harness) -> None:
    task_id, other = await failed(producer), await failed(producer)
    response = await producer.letters.DiscardDeadLetters(pb.DiscardDeadLettersRequest(ids=[task_id]))
    assert (response.matched, response.discarded) == (1, 1)
    row = await row_of(producer.db, UUID(task_id))
    assert (row["state"], row["reason"]) == ("CANCELLED", "DISCARDED")
    letter = (await producer.letters.GetDeadLetter(pb.GetDeadLetterRequest(id=task_id))).dead_letter
    assert letter.resolution == pb.DEAD_LETTER_RESOLUTION_DISCARDED
    refusal = await refused(redrive(producer, ids=[task_id]))
    assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "DEAD_LETTER_RESOLVED")
    everything = pb.DiscardDeadLettersRequest(filter=pb.DeadLetterFilter())
    response = await producer.letters.DiscardDeadLetters(everything)
    assert (response.matched, response.discarded) == (1, 1)
    assert await states(producer, [other]) == ["CANCELLED"]
