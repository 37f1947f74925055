"""What bounds submits (G8): each limit is named, its value, when to try again; what was accepted goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from headrace import Client
from headrace.errors import CallTimeoutError, HeadraceError, ServerLimitError, UnavailableError
from headrace.submit import repeat_until_answered
from headrace.v1 import producer_pb2
from headrace_core.db import pool
from headrace_core.db.pool import Database, Transaction
from headrace_core.errors import ServerLimit
from headrace_core.tasks import submit as store
from headrace_core.tasks.model import Fail, Plan, Submitted
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from producer import submit
from producer.submit import GroupCommit
from tests.factories import a_holder, a_task, claimed, events_of, row_of
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually
from tests.integration.rpc_rig import detail
from tests.producer_harness import Harness, refused, running_producer


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest_asyncio.fixture
async def producer(database_url: str) -> AsyncIterator[Harness]:
    async with running_producer(database_url) as harness:
        yield harness


@asynccontextmanager
async def frozen_table(db: Database) -> AsyncIterator[None]:
    """No insert into the units gets through in here: Postgres is slower than any flood."""
    locked, release = asyncio.Event(), asyncio.Event()

    async def hold(tx: Transaction) -> None:
        await tx.execute("lock table headrace_core.units in share mode")
        locked.set()
        await release.wait()

    holding = asyncio.create_task(db.run(hold, timeout=30))
    await locked.wait()
    try:
        yield
    finally:
        release.set()
        await holding


async def status_of_refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc_status.from_call(caught.value)


# -- max_backlog -------------------------------------------------------------------------------------------------------


async def test_a_full_queue_names_its_limit_its_value_and_when_to_try_again(producer: Harness) -> None:
    for _ in range(2):
        await producer.submit(queue="tiny")
    status = await status_of_refused(producer.submit(queue="tiny"))
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("BACKLOG_FULL", {"queue": "tiny", "limit": "2"})
    (violation,) = detail(status, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "tiny"
    assert "max_backlog" in violation.description
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
    assert "holds 2 waiting tasks, its max_backlog" in status.message


async def test_the_shards_of_one_huge_task_shut_nobody_out(producer: Harness) -> None:
    task = (await producer.submit(kind="sharded", queue="tiny")).task
    unit = await claimed(producer.db, a_holder(), UUID(task.id))
    await settle(producer.db, [Plan(unit.lease, tuple(b"{}" for _ in range(100)), 100)])
    await producer.service._loads.refresh()
    for _ in range(2):
        await producer.submit(queue="tiny")
    assert (await refused(producer.submit(queue="tiny"))).reason == "BACKLOG_FULL"


async def test_a_queue_takes_tasks_again_a_second_after_some_have_started(producer: Harness) -> None:
    tasks = [(await producer.submit(queue="tiny")).task for _ in range(2)]
    assert (await refused(producer.submit(queue="tiny"))).reason == "BACKLOG_FULL"
    await claimed(producer.db, a_holder(), UUID(tasks[0].id))
    await eventually(lambda: producer.submit(queue="tiny"), ignoring=(grpc.aio.AioRpcError,))


async def test_a_queue_full_of_dead_letters_names_its_limit_and_other_queues_go_on(producer: Harness) -> None:
    task = (await producer.submit(queue="choked")).task
    unit = await claimed(producer.db, a_holder(), UUID(task.id))
    error = error_json("NON_RETRYABLE", "E", "x")
    await settle(producer.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)])
    await producer.service._loads.refresh()
    status = await status_of_refused(producer.submit(queue="choked"))
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("DEAD_LETTERS_FULL", {"queue": "choked", "limit": "1"})
    (violation,) = detail(status, error_details_pb2.QuotaFailure).violations
    assert "max_dead_letters; redrive or discard some" in violation.description
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() >= 30
    assert (await producer.submit()).created


# -- the waiting room of the group commit ------------------------------------------------------------------------------


async def test_submits_that_would_not_be_committed_in_time_are_refused_at_once(db: Database) -> None:
    commits = GroupCommit(db, lambda _: None)
    async with frozen_table(db):
        accepted = [asyncio.create_task(commits.submit([a_task() for _ in range(500)], within=20)) for _ in range(3)]
        await eventually(lambda: commits._pace.seconds > 1.0)
        with pytest.raises(ServerLimit) as caught:
            async with asyncio.timeout(0.5):  # and not after its 2 s
                await commits.submit([a_task()], within=2.0)
        assert (caught.value.retry_after or 0) >= 1.0
        assert "500 submits are waiting for Postgres" in caught.value.message
    answers = [answer for batch in accepted for answer in await batch]
    assert sum(isinstance(answer, Submitted) for answer in answers) == 1500
    (last,) = await commits.submit([a_task()], within=2.0)
    assert isinstance(last, Submitted)
    await commits.close()


async def test_a_few_submits_wait_for_a_silent_postgres(db: Database) -> None:
    """The next commit takes them all: refusing them would turn every hiccup of Postgres into errors."""
    commits = GroupCommit(db, lambda _: None)
    async with frozen_table(db):
        first = asyncio.create_task(commits.submit([a_task()], within=20))
        await eventually(lambda: commits._pace.seconds > 1.0)
        second = asyncio.create_task(commits.submit([a_task()], within=1.5))
        await asyncio.sleep(0)
    assert all(isinstance(answer, Submitted) for batch in (await first, await second) for answer in batch)
    await commits.close()


async def test_the_waiting_room_is_bounded_in_bytes(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_WAITING_BYTES", 1000)
    commits = GroupCommit(db, lambda _: None)
    heavy = b'{"a":"' + b"x" * 600 + b'"}'
    first = asyncio.ensure_future(commits.submit([a_task(payload=heavy)], within=10))
    second = asyncio.ensure_future(commits.submit([a_task(payload=heavy)], within=10))
    with pytest.raises(ServerLimit, match="at most 1000 may"):
        await second
    await first
    await commits.submit([a_task(payload=heavy)], within=10)
    gone = asyncio.ensure_future(commits.submit([a_task(payload=heavy)], within=10))
    await asyncio.sleep(0)
    gone.cancel()
    await eventually(lambda: not commits._commits)
    await commits.submit([a_task(payload=heavy)], within=10)
    await commits.close()


async def test_a_commit_is_bounded_in_bytes(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_BATCH_BYTES", 1000)
    commits = GroupCommit(db, lambda _: None)
    heavy = b'{"a":"' + b"x" * 600 + b'"}'
    await commits.submit([a_task(payload=heavy) for _ in range(10)], within=20)
    (row,) = await db.fetch("select count(distinct xmin::text) as n from headrace_core.units")
    assert row["n"] == 5
    await commits.close()


async def test_large_payloads_of_many_callers_are_all_accepted(producer: Harness) -> None:
    heavy = b'{"a":"' + b"x" * (1024 * 1024 - 8) + b'"}'
    answers = await asyncio.gather(*(producer.submit(payload_json=heavy) for _ in range(24)))
    assert all(answer.created for answer in answers)


async def test_a_flood_is_refused_in_words_and_everything_accepted_completes(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "MAX_WAITING", 60)
    rig = ConsumerRig(database_url, None, tmp_path)
    await rig.open()
    try:
        async with running_producer(database_url) as producer:
            await rig.consumer()
            answers = await asyncio.gather(*(flooding(producer) for _ in range(60)))
            accepted = sum(answers)
            assert 0 < accepted < 60 * 50
            await eventually(lambda: completed(rig.db, accepted), within=30)
    finally:
        await rig.close()


async def flooding(producer: Harness) -> int:
    """Submit 50 tasks in one call; how many were accepted: all, or none, refused as it should be."""
    request = producer_pb2.SubmitTaskRequest(kind="double", payload_json=b'{"n":1}')
    try:
        response = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=[request] * 50))
    except grpc.aio.AioRpcError as error:
        status = rpc_status.from_call(error)
    else:
        return sum(result.response.created for result in response.results)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, dict(info.metadata)) == ("SERVER_LIMIT", {"limit": "60"})
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() > 0
    return 0


async def completed(db: Database, number: int) -> bool:
    (row,) = await db.fetch(
        "select count(*) as n, count(*) filter (where state = 'COMPLETED') as done from headrace_core.units"
    )
    assert row["n"] == number, "what was refused must not be there"
    return bool(row["done"] == number)


# -- what the SDK makes of it ------------------------------------------------------------------------------------------


class Answers:
    """A `send` that fails in the given ways, then answers."""

    def __init__(self, *errors: HeadraceError) -> None:
        self.errors = list(errors)

    async def __call__(self, _seconds: float) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "accepted"


async def test_the_sdk_tries_again_when_the_server_says_so() -> None:
    busy = ServerLimitError("busy", retry_after=0.01)
    assert await repeat_until_answered(Answers(busy, busy), 5.0) == "accepted"


async def test_a_refusal_after_a_try_without_an_answer_leaves_the_outcome_unknown() -> None:
    answers = Answers(CallTimeoutError("silent", retry_after=0.01), *[ServerLimitError("busy", retry_after=9.0)] * 9)
    with pytest.raises(UnavailableError, match="silent"):
        await repeat_until_answered(answers, 1.0)


async def test_a_server_that_stays_busy_is_a_refusal() -> None:
    with pytest.raises(ServerLimitError):
        await repeat_until_answered(Answers(*[ServerLimitError("busy", retry_after=9.0)] * 9), 1.0)


# -- the same keys in opposite orders ----------------------------------------------------------------------------------


async def test_two_commits_with_the_same_keys_in_opposite_orders_wait_for_each_other_in_one_order(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both meet a third at the key in the middle: in the order of the callers that would be a deadlock, every time."""
    monkeypatch.setattr(pool, "is_repeatable", lambda _error: False)  # a deadlock is not hidden by repeating
    inserted, release = asyncio.Event(), asyncio.Event()

    async def hold_the_middle(tx: Transaction) -> None:
        await tx.execute(INSERT_MIDDLE)
        inserted.set()
        await release.wait()
        raise GivenUpError

    holding = asyncio.create_task(db.run(hold_the_middle, timeout=30))
    await inserted.wait()
    calls = []
    for number, order in enumerate(("amz", "zma"), start=1):
        calls.append(asyncio.create_task(store.submit(db, [a_task(idempotency_key=key) for key in order])))
        await eventually(lambda: waiting_for_locks(db, number))  # noqa: B023 - called before the next round
    release.set()
    with pytest.raises(GivenUpError):
        await holding
    first, second = await asyncio.gather(*calls)
    assert [answer.task.id for answer in first] == [answer.task.id for answer in second[::-1]]


INSERT_MIDDLE = """
insert into headrace_core.units (task_id, unit, namespace, kind, queue, priority, payload, fingerprint, idempotency_key,
    sequence, due_at, max_attempts, max_crashes)
values (gen_random_uuid(), -1, 'default', 'plain', 'default', 2, '{}', '', 'm', 1, now(), 3, 3)
"""


class GivenUpError(Exception):
    """The third one's: it commits nothing."""


async def waiting_for_locks(db: Database, number: int) -> bool:
    (row,) = await db.fetch(
        "select count(*) as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    return bool(row["n"] == number)


async def test_batches_of_the_same_keys_in_opposite_orders_deadlock_nowhere(database_url: str) -> None:
    """Two producers, as two replicas; each key is one task, whoever was first."""
    keys = [f"key-{n}" for n in range(200)]
    async with running_producer(database_url) as one, running_producer(database_url) as other:
        clients = [Client(producer=each.service.grpc_address) for each in (one, other)]
        batches = []
        for n in range(12):
            client = clients[n % 2]
            order = keys if n % 4 < 2 else keys[::-1]
            batches.append(client.submit_many([client.request("plain", {}, idempotency_key=key) for key in order]))
        found = [{task.idempotency_key: task.id for task in tasks} for tasks in await asyncio.gather(*batches)]
        for client in clients:
            await client.close()
        assert all(ids == found[0] for ids in found)
        assert set(found[0]) == set(keys)
        for task_id in found[0].values():
            assert len(await events_of(one.db, UUID(task_id))) == 1
        assert (await row_of(one.db, UUID(found[0]["key-0"])))["state"] == "PENDING"
