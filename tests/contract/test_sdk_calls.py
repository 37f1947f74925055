"""Submits are repeated identically, refusals arrive by reason, results and pages are complete."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pydantic
import pytest

from headrace import Client, SyncClient, errors
from headrace.v1 import producer_pb2, queue_pb2, status_pb2, task_pb2
from tests.contract.scripted import TASK, Script, ScriptedServer, accepted, life, refusal, serving, snapshot

AWAY = refusal(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", "no database")
REASONS = [
    (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", errors.InvalidFieldsError),
    (grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_MISMATCH", errors.PayloadMismatchError),
    (grpc.StatusCode.NOT_FOUND, "UNKNOWN_KIND", errors.UnknownKindError),
    (grpc.StatusCode.NOT_FOUND, "UNKNOWN_QUEUE", errors.UnknownQueueError),
    (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", errors.IdempotencyKeyReusedError),
    (grpc.StatusCode.FAILED_PRECONDITION, "TASK_TERMINAL", errors.TaskTerminalError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKLOG_FULL", errors.BacklogFullError),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEAD_LETTERS_FULL", errors.DeadLettersFullError),
    (grpc.StatusCode.INTERNAL, "INTERNAL", errors.InternalError),
    (grpc.StatusCode.NOT_FOUND, "OF_A_LATER_VERSION", errors.NotFoundError),
    (grpc.StatusCode.FAILED_PRECONDITION, "", errors.RefusedByStateError),
]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with serving(Script()) as scripted:
        yield scripted


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[Client]:
    async with Client(producer=server.address, status=server.address, namespace="shop", timeout=5.0) as made:
        yield made


async def test_a_submit_sends_what_it_was_given(server: ScriptedServer, client: Client) -> None:
    end = datetime(2040, 1, 1, tzinfo=UTC)
    task = await client.submit(
        "resize", {"text": "你好", "n": 2**60}, queue="images", labels={"a": "b"}, priority="high", deadline=end,
        delay=timedelta(hours=1), max_attempts=7,
    )  # fmt: skip
    (request,) = server.script.asked("SubmitTask")
    assert task.id == TASK
    assert request.payload_json == '{"text":"你好","n":1152921504606846976}'.encode()
    assert (request.namespace, request.kind, request.queue) == ("shop", "resize", "images")
    assert (dict(request.labels), request.priority) == ({"a": "b"}, task_pb2.PRIORITY_HIGH)
    assert (request.max_attempts, request.deadline.ToDatetime(UTC)) == (7, end)
    ahead = request.run_at.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(minutes=59) < ahead <= timedelta(hours=1)
    assert len(request.idempotency_key) == 36


async def test_an_unavailable_submit_is_repeated_with_the_identical_request(
    server: ScriptedServer, client: Client
) -> None:
    server.script.refusals += [AWAY, refusal(grpc.StatusCode.UNAVAILABLE), refusal(grpc.StatusCode.CANCELLED)]
    await client.submit("echo", {"a": 1})
    sent = [request.SerializeToString(deterministic=True) for request in server.script.asked("SubmitTask")]
    assert len(sent) == 4
    assert len(set(sent)) == 1


async def test_the_server_says_when_to_repeat(server: ScriptedServer, client: Client) -> None:
    server.script.refusals.append(refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING", retry_after=0.5))
    before = time.monotonic()
    await client.submit("echo")
    assert time.monotonic() - before >= 0.5


async def test_a_wait_beyond_the_timeout_is_not_begun(server: ScriptedServer, client: Client) -> None:
    server.script.refusals.append(refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING", retry_after=0.9))
    with pytest.raises(errors.DrainingError, match=r"outcome is unknown.*key mine"):
        await client.submit("echo", idempotency_key="mine", timeout=0.5)
    assert len(server.script.asked("SubmitTask")) == 1


async def test_a_producer_that_is_away_is_an_error_within_the_timeout() -> None:
    async with Client(producer="127.0.0.1:1", timeout=0.5) as client:
        with pytest.raises(errors.UnavailableError, match=r"producer at 127\.0\.0\.1:1"):
            await client.submit("echo")


@pytest.mark.parametrize(("code", "reason", "kind"), REASONS)
async def test_refusals_are_rebuilt_by_reason(
    server: ScriptedServer,
    client: Client,
    code: grpc.StatusCode,
    reason: str,
    kind: type[errors.HeadraceError],
) -> None:
    server.script.refusals.append(refusal(code, reason, "said so", violations={"kind": "is odd"}, retry_after=0.5))
    with pytest.raises(errors.HeadraceError) as caught:
        await client.submit("echo")
    assert type(caught.value) is kind
    assert (caught.value.reason, caught.value.code, caught.value.message) == (reason, code, "said so")
    assert caught.value.violations == (errors.Violation("kind", "is odd"),)
    assert caught.value.retry_after == 0.5
    assert len(server.script.asked("SubmitTask")) == 1


@pytest.mark.parametrize(
    "payload",
    [{"a": float("nan")}, {"a": float("inf")}, {"a": "\ud800"}, {"a": object()}, ["a"], {"a": "x" * 1_100_000}],
    ids=["nan", "inf", "surrogate", "object", "list", "large"],
)
async def test_what_is_no_json_is_refused_before_it_is_sent(
    server: ScriptedServer, client: Client, payload: dict[str, object]
) -> None:
    with pytest.raises(errors.InvalidFieldsError, match="payload"):
        await client.submit("echo", payload)
    assert server.script.asked("SubmitTask") == []


async def test_a_model_is_sent_by_its_aliases(server: ScriptedServer, client: Client) -> None:
    class Model(pydantic.BaseModel):
        width: int = pydantic.Field(alias="w")

    await client.submit("echo", Model(w=3))
    assert server.script.asked("SubmitTask")[0].payload_json == b'{"w":3}'


def numbered(request: producer_pb2.SubmitTasksRequest) -> producer_pb2.SubmitTasksResponse:
    results = []
    for one in request.requests:
        answer = accepted(one)
        answer.task.id = one.payload_json.decode()
        results.append(producer_pb2.SubmitTaskResult(response=answer))
    return producer_pb2.SubmitTasksResponse(results=results)


async def test_many_are_sent_in_chunks_and_answered_in_order(server: ScriptedServer, client: Client) -> None:
    server.script.answers["SubmitTasks"] = numbered
    tasks = await client.submit_many(({"n": n} for n in range(1203)), kind="echo", labels={"run": "x"})
    assert [task.id for task in tasks] == [f'{{"n":{n}}}' for n in range(1203)]
    chunks = server.script.asked("SubmitTasks")
    assert sorted(len(chunk.requests) for chunk in chunks) == [203, 500, 500]
    keys = {one.idempotency_key for chunk in chunks for one in chunk.requests}
    assert len(keys) == 1203
    assert all(one.labels["run"] == "x" for chunk in chunks for one in chunk.requests)


async def test_large_payloads_make_smaller_chunks(server: ScriptedServer, client: Client) -> None:
    tasks = await client.submit_many([{"text": "x" * 1_000_000}] * 9, kind="echo")
    assert len(tasks) == 9
    assert all(chunk.ByteSize() < 5 * 1024 * 1024 for chunk in server.script.asked("SubmitTasks"))


def second_refused(request: producer_pb2.SubmitTasksRequest) -> producer_pb2.SubmitTasksResponse:
    response = numbered(request)
    status = refusal(grpc.StatusCode.NOT_FOUND, "UNKNOWN_KIND", "no such kind")
    error = producer_pb2.SubmitError(code=status.code, message=status.message, details=status.details)
    response.results[1].error.CopyFrom(error)
    return response


async def test_errors_stand_in_their_places(server: ScriptedServer, client: Client) -> None:
    server.script.answers["SubmitTasks"] = second_refused
    items: list[dict[str, float]] = [{"n": 0}, {"n": 1}, {"n": float("nan")}, {"n": 3}]
    outcomes = await client.submit_many(items, kind="echo", return_errors=True)
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [task_pb2.Task, errors.UnknownKindError, errors.InvalidFieldsError, task_pb2.Task]
    with pytest.raises(errors.SubmitManyError, match="2 of 4") as caught:
        await client.submit_many(items, kind="echo")
    assert [type(outcome) for outcome in caught.value.results] == kinds


async def test_an_item_whose_outcome_is_unknown_is_sent_again_alone(server: ScriptedServer, client: Client) -> None:
    def once(request: producer_pb2.SubmitTasksRequest) -> producer_pb2.SubmitTasksResponse:
        response = numbered(request)
        if len(request.requests) == 3:
            error = producer_pb2.SubmitError(code=AWAY.code, message=AWAY.message, details=AWAY.details)
            response.results[1].error.CopyFrom(error)
        return response

    server.script.answers["SubmitTasks"] = once
    tasks = await client.submit_many([{"n": n} for n in range(3)], kind="echo")
    assert [task.id for task in tasks] == ['{"n":0}', '{"n":1}', '{"n":2}']
    first, second = server.script.asked("SubmitTasks")
    assert list(second.requests) == [first.requests[1]]


async def test_after_a_lost_chunk_nothing_more_is_built_or_sent() -> None:
    async with Client(producer="127.0.0.1:1", timeout=0.3) as client, asyncio.timeout(20):
        # Built, the later ones would be refused for what they are.
        items = [{"n": 0.0}] * 3000 + [{"n": float("nan")}] * 3000
        outcomes = await client.submit_many(items, kind="echo", return_errors=True)
    assert len(outcomes) == 6000
    assert all(isinstance(outcome, errors.UnavailableError) for outcome in outcomes)


def ended(state: "task_pb2.TaskState.ValueType") -> status_pb2.GetTaskResponse:
    task = task_pb2.Task(id=TASK, state=state)
    if state == task_pb2.TASK_STATE_COMPLETED:
        task.result_json = b'{"n":1152921504606846977}'
    else:
        task.reason = 40  # type: ignore[assignment]
        task.error.type, task.error.message = "ValueError", "no"
    return status_pb2.GetTaskResponse(task=task)


async def test_a_result_is_waited_for_and_decoded(server: ScriptedServer, client: Client) -> None:
    server.script.watches += [[*life()]]
    server.script.answers["GetTask"] = ended(task_pb2.TASK_STATE_COMPLETED)
    assert await client.result(TASK, timeout=10) == {"n": 2**60 + 1}


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (task_pb2.TASK_STATE_FAILED, errors.TaskFailed),
        (task_pb2.TASK_STATE_CANCELLED, errors.TaskCancelled),
        (task_pb2.TASK_STATE_EXPIRED, errors.TaskExpired),
    ],
)
async def test_another_end_is_raised(
    server: ScriptedServer,
    client: Client,
    state: "task_pb2.TaskState.ValueType",
    kind: type[errors.TaskEndedError],
) -> None:
    server.script.watches += [[snapshot(9, state)]]
    server.script.answers["GetTask"] = ended(state)
    with pytest.raises(kind, match=r"ATTEMPTS_EXHAUSTED.*ValueError: no") as caught:
        await client.result(TASK, timeout=10)
    assert caught.value.reason == "ATTEMPTS_EXHAUSTED"
    assert caught.value.task.id == TASK


async def test_a_result_that_does_not_come_is_a_timeout(server: ScriptedServer, client: Client) -> None:
    server.script.watches += [[life()[0], asyncio.Event().wait]]
    with pytest.raises(errors.CallTimeoutError, match=r"within 0\.3 s"):
        await client.result(TASK, timeout=0.3)


async def test_lists_go_through_all_pages(server: ScriptedServer, client: Client) -> None:
    def page(request: status_pb2.ListTasksRequest) -> status_pb2.ListTasksResponse:
        number = int(request.page_token or 0)
        tasks = [task_pb2.Task(id=f"{number}-{n}") for n in range(2)]
        return status_pb2.ListTasksResponse(tasks=tasks, next_page_token=str(number + 1) if number < 2 else "")

    server.script.answers["ListTasks"] = page
    found = [task.id async for task in client.list(states=["FAILED"], kind="echo")]
    assert found == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    filters = [request.filter for request in server.script.asked("ListTasks")]
    assert all(one.states == [task_pb2.TASK_STATE_FAILED] and one.namespace == "shop" for one in filters)


async def test_reads_are_repeated_by_grpc_and_changes_are_not(server: ScriptedServer, client: Client) -> None:
    server.script.refusals.append(refusal(grpc.StatusCode.UNAVAILABLE))
    await client.get(TASK)
    assert len(server.script.asked("GetTask")) == 2
    server.script.refusals.append(refusal(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(errors.UnavailableError):
        await client.queues.purge("default")
    assert len(server.script.asked("PurgeQueue")) == 1


async def test_a_single_id_may_be_a_string(server: ScriptedServer, client: Client) -> None:
    await client.dead_letters.redrive(TASK)
    await client.dead_letters.discard([TASK, "other"])
    assert list(server.script.asked("RedriveDeadLetters")[0].ids) == [TASK]
    assert list(server.script.asked("DiscardDeadLetters")[0].ids) == [TASK, "other"]


async def test_a_closed_client_says_so(server: ScriptedServer) -> None:
    client = Client(producer=server.address, status=server.address)
    await client.get(TASK)
    await client.close()
    await client.close()
    with pytest.raises(errors.ClientClosedError):
        await client.get(TASK)


async def test_the_sync_client_does_the_same(server: ScriptedServer) -> None:
    server.script.watches += [[*life()], [*life()], [life()[0], asyncio.Event().wait]]
    server.script.answers["GetTask"] = ended(task_pb2.TASK_STATE_COMPLETED)
    server.script.answers["GetQueue"] = queue_pb2.GetQueueResponse(queue=queue_pb2.Queue(name="default"))

    def use() -> None:
        with SyncClient(producer=server.address, status=server.address) as client:
            task = client.submit("echo", {"a": 1})
            assert [event.sequence for event in client.watch(task.id, after_sequence=0)] == [1, 2, 3, 4, 5, 6]
            assert client.result(task.id, timeout=10) == {"n": 2**60 + 1}
            assert len(client.submit_many([client.request("echo"), {"n": 1}], kind="echo")) == 2
            assert client.queues.get("default").name == "default"
            left_open = client.watch(task.id, after_sequence=0)
            assert next(left_open).sequence == 1
        with pytest.raises(errors.ClientClosedError):
            client.get(task.id)

    await asyncio.wait_for(asyncio.to_thread(use), 20)
