"""Every operator's action leaves its row: what it changed, what it did not, what was denied. And rows go, in time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.v1 import dead_letter_pb2, producer_pb2, queue_pb2
from headrace_core.tasks.model import Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from producer.auditing import ACTIONS
from producer.retention import Retention
from tests.access_rig import as_, write_access_file
from tests.factories import a_holder, claimed, submitted
from tests.producer_harness import Harness, running_producer

SECRET = b'{"n": 4711}'


@pytest.fixture
async def producer(database_url: str, tmp_path: Path) -> AsyncIterator[Harness]:
    tokens = {"boss": ["admin:*"], "reader": ["read:*"], "sender": ["submit:own"]}
    path = write_access_file(tmp_path / "access.toml", tokens)
    async with running_producer(database_url, auth_file=path) as harness:
        yield harness


async def rows(producer: Harness) -> list[Mapping[str, Any]]:
    found = await producer.db.fetch("select * from headrace.audit order by at")
    assert str(4711) not in str(found)
    return list(found)


def content(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """Before and after."""
    return row["before"], row["after"]


async def a_dead_letter(producer: Harness, namespace: str = "own") -> str:
    task = await submitted(producer.db, namespace=namespace, payload=SECRET)
    unit = await claimed(producer.db, a_holder(), task.id)
    await settle(producer.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error_json("X", "X", "x"))])
    return str(task.id)


async def test_pause_and_resume_say_what_was_and_what_is(producer: Harness) -> None:
    for _ in range(2):
        await producer.queues.PauseQueue(queue_pb2.PauseQueueRequest(name="brief"), metadata=as_("boss"))
    await producer.queues.ResumeQueue(queue_pb2.ResumeQueueRequest(name="brief"), metadata=as_("boss"))
    first, second, third = await rows(producer)
    assert (first["who"], first["action"], first["target"], first["outcome"]) == ("token:boss", "pause", "brief", "OK")
    assert first["peer"].startswith(("ipv4:127.0.0.1", "ipv6:"))
    assert content(first)[0] == {"paused_at": None}
    paused = content(first)[1]
    assert paused["paused_at"]
    assert content(second) == (paused, paused)
    assert content(third) == (paused, {"paused_at": None})


async def test_a_purge_is_one_row_however_many_batches(producer: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_core.tasks.queues.PURGE_BATCH", 2)
    for _ in range(5):
        await submitted(producer.db, queue="brief")
    await producer.queues.PurgeQueue(queue_pb2.PurgeQueueRequest(name="brief"), metadata=as_("boss"))
    await producer.queues.PurgeQueue(queue_pb2.PurgeQueueRequest(name="brief"), metadata=as_("boss"))
    first, second = await rows(producer)
    assert (first["action"], first["outcome"], content(first)[1]) == ("purge", "OK", {"purged": 5})
    assert (second["outcome"], content(second)[1]) == ("OK", {"purged": 0})


async def test_redrive_and_discard_by_id_and_by_filter(producer: Harness) -> None:
    one, two, three = [await a_dead_letter(producer) for _ in range(3)]
    redrive, discard = dead_letter_pb2.RedriveDeadLettersRequest, dead_letter_pb2.DiscardDeadLettersRequest
    await producer.letters.RedriveDeadLetters(redrive(ids=[one], payload_json=SECRET), metadata=as_("boss"))
    await producer.letters.RedriveDeadLetters(redrive(ids=[two], dry_run=True), metadata=as_("boss"))
    wanted = dead_letter_pb2.DeadLetterFilter(namespace="own")
    await producer.letters.DiscardDeadLetters(discard(filter=wanted), metadata=as_("boss"))
    await producer.letters.RedriveDeadLetters(redrive(filter=wanted), metadata=as_("boss"))
    first, second, third = await rows(producer)
    assert (first["action"], json.loads(first["target"])) == ("redrive", {"ids": [one], "count": 1})
    assert content(first)[1] == {"redriven": 1, "payload": "replaced"}
    assert (second["action"], json.loads(second["target"])) == ("discard", {"filter": {"namespace": "own"}})
    assert content(second)[1] == {"discarded": 2}
    assert (third["action"], third["outcome"], third["namespace"]) == ("redrive", "OK", "own")
    assert three


async def test_a_redrive_with_a_rate_says_how_many_wait_for_their_turn(producer: Harness) -> None:
    ids = [await a_dead_letter(producer) for _ in range(3)]
    request = dead_letter_pb2.RedriveDeadLettersRequest(ids=ids, rate=0.01)
    await producer.letters.RedriveDeadLetters(request, metadata=as_("boss"))
    (row,) = await rows(producer)
    assert content(row)[1] == {"redriven": 1, "scheduled": 2, "rate": 0.01}


async def test_a_cancellation_by_an_operator_is_an_action_and_by_a_client_is_none(producer: Harness) -> None:
    task, own = [str((await submitted(producer.db, namespace="own")).id) for _ in range(2)]
    await producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=task), metadata=as_("boss"))
    await producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=own), metadata=as_("sender"))
    (row,) = await rows(producer)
    assert (row["action"], row["target"], row["namespace"]) == ("cancel", task, "own")
    assert content(row) == ({"state": "PENDING"}, {"state": "CANCELLED"})


def requests(what: str) -> tuple[str, Any]:
    """A service's stub and a request for something that is not there."""
    nothing = "01890a5d-ac96-774b-bcce-b302099a8057"
    return {
        "pause": ("queues", queue_pb2.PauseQueueRequest(name="none")),
        "resume": ("queues", queue_pb2.ResumeQueueRequest(name="none")),
        "purge": ("queues", queue_pb2.PurgeQueueRequest(name="none")),
        "redrive": ("letters", dead_letter_pb2.RedriveDeadLettersRequest(ids=[nothing], payload_json=SECRET)),
        "discard": ("letters", dead_letter_pb2.DiscardDeadLettersRequest(ids=[nothing])),
        "cancel": ("tasks", producer_pb2.CancelTaskRequest(id=nothing)),
    }[what]


@pytest.mark.parametrize("method", ACTIONS)
async def test_what_fails_and_what_is_denied_leaves_its_row(producer: Harness, method: str) -> None:
    what = ACTIONS[method]
    stub, request = requests(what)
    for who in ("boss", "reader", "nobody"):
        with pytest.raises(grpc.aio.AioRpcError):
            await getattr(getattr(producer, stub), method.rpartition("/")[2])(request, metadata=as_(who))
    failed, denied = await rows(producer)
    assert (failed["who"], failed["action"]) == ("token:boss", what)
    assert failed["outcome"] in ("UNKNOWN_QUEUE", "DEAD_LETTER_NOT_FOUND", "TASK_NOT_FOUND")
    assert (denied["who"], denied["action"], denied["outcome"]) == ("token:reader", what, "PERMISSION_DENIED")
    assert denied["target"] == failed["target"]


async def test_without_authentication_everybody_is_anonymous(database_url: str) -> None:
    async with running_producer(database_url) as producer:
        await producer.queues.PauseQueue(queue_pb2.PauseQueueRequest(name="brief"))
        (row,) = await rows(producer)
    assert row["who"] == "anonymous"
    assert row["peer"]


async def test_an_action_that_is_undone_leaves_no_row_of_success(
    producer: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is in the action's transaction: whoever cannot write it does not act."""
    monkeypatch.setattr("headrace_core.tasks.audit._SQL", {"note": "select 1 / 0"})
    with pytest.raises(grpc.aio.AioRpcError):
        await producer.queues.PauseQueue(queue_pb2.PauseQueueRequest(name="brief"), metadata=as_("boss"))
    (queue,) = await producer.db.fetch("select paused_at from headrace_core.queues where name = 'brief'")
    assert queue["paused_at"] is None


async def test_old_rows_go_and_young_ones_stay(producer: Harness) -> None:
    await producer.queues.PauseQueue(queue_pb2.PauseQueueRequest(name="brief"), metadata=as_("boss"))
    await producer.queues.PauseQueue(queue_pb2.PauseQueueRequest(name="tiny"), metadata=as_("boss"))
    await producer.db.execute("update headrace_core.audit set at = now() - interval '366 days' where target = 'tiny'")
    await Retention(producer.db, days=0, events_days=0, share=1.0, audit_days=0).remove_due()
    assert len(await rows(producer)) == 2
    await Retention(producer.db, days=0, events_days=0, share=1.0, audit_days=365).remove_due()
    assert [row["target"] for row in await rows(producer)] == ["brief"]
