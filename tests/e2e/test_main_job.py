"""The main job, end to end: accepted, dispatched through JetStream, run, settled, watched, read by SQL."""

import asyncio
import json
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import nats.js.errors
import pytest

from headrace import Client, errors
from headrace.v1 import task_pb2
from headrace_core.db.pool import Database
from headrace_core.stack.dev import Endpoints
from headrace_core.stack.testing import SteeredStack
from tests.e2e.running import lines_of
from tests.fixtures.waiting import eventually

State = task_pb2.TaskState


async def delivered_count(endpoints: Endpoints) -> int:
    connection = await nats.connect(endpoints.nats_url)
    try:
        consumers = await connection.jetstream().consumers_info("HEADRACE_TASKS")
        assert {consumer.config.max_deliver for consumer in consumers} == {3}
        return sum(consumer.delivered.consumer_seq for consumer in consumers if consumer.delivered)
    finally:
        await connection.close()


def metric(running_stack: SteeredStack, name: str) -> float:
    """The sum of a metric's samples over all consumers whose line contains `name`."""
    total = 0.0
    for service_name, service in running_stack.stack.services.items():
        if service_name.startswith("consumer"):
            with urllib.request.urlopen(f"http://{service.addresses.ops}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            total += sum(float(line.rsplit(" ", 1)[1]) for line in lines if name in line and not line.startswith("#"))
    return total


async def test_a_thousand_tasks_come_through_the_stream_and_every_result_is_right(
    client: Client, db: Database, endpoints: Endpoints, running_stack: SteeredStack
) -> None:
    before = await delivered_count(endpoints)
    tasks = await client.submit_many([{"n": n} for n in range(1000)], kind="echo", labels={"run": "thousand"})
    assert len({task.id for task in tasks}) == 1000
    results = await asyncio.gather(*(client.result(task.id, timeout=60) for task in tasks[::20]))
    assert [result["n"] for result in results] == list(range(0, 1000, 20))

    async def all_ended() -> bool:
        rows = await db.fetch(
            "select count(*) as n from headrace.tasks where labels @> '{\"run\": \"thousand\"}' and state = 'COMPLETED'"
        )
        return bool(rows[0]["n"] == 1000)

    await eventually(all_ended, within=60)
    rows = await db.fetch('select payload, result from headrace.tasks where labels @> \'{"run": "thousand"}\'')
    assert sorted(json.loads(row["result"])["n"] for row in rows) == list(range(1000))
    assert all(json.loads(row["result"]) == json.loads(row["payload"]) for row in rows)
    full = await client.get(tasks[7].id, full=True)
    assert json.loads(full.result_json) == {"n": 7}
    assert await delivered_count(endpoints) - before >= 1000
    assert metric(running_stack, 'source="postgres"') == 0


async def test_handlers_of_every_execution_run(client: Client) -> None:
    added = await client.submit("add", {"a": 2, "b": 3})
    doubled = await client.submit("plain", {"n": 21})
    processed = await client.submit("process", {"n": 5})
    squares = await client.submit("squares", {"count": 30})
    assert await client.result(added.id, timeout=30) == {"sum": 5}
    assert await client.result(doubled.id, timeout=30) == {"doubled": 42, "attempt": 1}
    assert (await client.result(processed.id, timeout=30))["n"] == 5
    assert await client.result(squares.id, timeout=30) == {"sum": sum(n * n for n in range(30)), "parts": 30}
    task = await client.get(squares.id, full=True)
    assert (task.progress.done_shards, task.progress.total_shards) == (30, 30)
    assert len(task.shards) == 30


async def test_two_failures_and_then_success(client: Client, ledger: Path) -> None:
    task = await client.submit("third-time", {"ledger": str(ledger)})
    assert await client.result(task.id, timeout=30) == {"attempt": 3}
    full = await client.get(task.id, full=True)
    assert [attempt.attempt for attempt in full.attempt_history] == [1, 2, 3]
    assert full.budgets.failures == 2


async def test_what_always_fails_starts_three_times_then_is_a_dead_letter_until_redriven(
    client: Client, ledger: Path, endpoints: Endpoints
) -> None:
    task = await client.submit("always-fails", {"ledger": str(ledger)})
    with pytest.raises(errors.TaskFailed):
        await client.result(task.id, timeout=30)
    assert lines_of(ledger) == ["attempt 1", "attempt 2", "attempt 3"]
    letter = await client.dead_letters.get(task.id)
    assert (letter.task_id, letter.generation, len(letter.attempts)) == (task.id, 1, 3)
    assert letter.error.message == "it never works"
    message = await read_dead_letter(endpoints, letter.id)
    assert json.loads(message)["task"] == task.id

    answer = await client.dead_letters.redrive([task.id])
    (redriven,) = answer.tasks
    assert (redriven.state, redriven.generation, redriven.budgets.failures) == (State.TASK_STATE_PENDING, 2, 0)
    assert redriven.sequence > 0
    with pytest.raises(errors.TaskFailed):
        await client.result(task.id, timeout=30)
    assert len(lines_of(ledger)) == 6
    again = await client.dead_letters.get(task.id)
    assert again.generation == 2
    await client.dead_letters.discard([task.id])
    ended = await client.get(task.id)
    assert ended.state == State.TASK_STATE_CANCELLED


async def read_dead_letter(endpoints: Endpoints, id: str) -> bytes:
    """The entry in the DLQ stream, as any plain NATS client sees it."""
    connection = await nats.connect(endpoints.nats_url)
    try:
        message = await eventually(
            lambda: connection.jetstream().get_last_msg("HEADRACE_DLQ", f"headrace.dlq.default.{id}"),
            within=30,
            ignoring=(nats.js.errors.NotFoundError,),
        )
        assert message.data is not None
        return message.data
    finally:
        await connection.close()


async def test_non_retryable_ends_at_once(client: Client, ledger: Path) -> None:
    task = await client.submit("hopeless", {"ledger": str(ledger)})
    with pytest.raises(errors.TaskFailed):
        await client.result(task.id, timeout=30)
    assert lines_of(ledger) == ["start"]


@pytest.mark.parametrize("kind", ["too-slow", "too-slow-process"])
async def test_a_timeout_is_a_failure(client: Client, ledger: Path, kind: str) -> None:
    task = await client.submit(kind, {"ledger": str(ledger)}, max_attempts=2)
    with pytest.raises(errors.TaskFailed):
        await client.result(task.id, timeout=30)
    assert lines_of(ledger) == ["start", "start"]
    assert "timeout" in (await client.get(task.id)).error.message


async def test_a_crash_in_the_process_pool_costs_one_task(client: Client, ledger: Path) -> None:
    good = await client.submit("process", {"n": 1})
    task = await client.submit("crashes", {"ledger": str(ledger)})
    with pytest.raises(errors.TaskFailed):
        await client.result(task.id, timeout=30)
    ended = await client.get(task.id)
    assert (ended.budgets.crashes, ended.budgets.failures) == (3, 0)
    assert (await client.result(good.id, timeout=30))["n"] == 1


async def test_a_batch_handler_gets_many_and_one_bad_item_fails_alone(client: Client, ledger: Path) -> None:
    items = [{"n": n, "ledger": str(ledger), "bad": n == 13} for n in range(20)]
    tasks = await client.submit_many(items, kind="measure", max_attempts=1)
    for n, task in enumerate(tasks):
        if n == 13:
            with pytest.raises(errors.TaskFailed):
                await client.result(task.id, timeout=30)
        else:
            assert await client.result(task.id, timeout=30) == {"n": n}
    calls = [int(line.split()[1]) for line in lines_of(ledger)]
    assert sum(calls) == 20
    assert len(calls) <= 4
    assert max(calls) <= 8


async def test_a_quorum_of_shards_is_enough(client: Client) -> None:
    task = await client.submit("mostly-good", {})
    assert await client.result(task.id, timeout=30) == {"parts": [0, 2]}


async def test_one_key_from_fifty_callers_is_one_task(client: Client) -> None:
    submits = (client.submit("echo", {"n": 1}, idempotency_key="fifty") for _ in range(50))
    assert len({task.id for task in await asyncio.gather(*submits)}) == 1
    with pytest.raises(errors.HeadraceError) as refused:
        await client.submit("echo", {"n": 2}, idempotency_key="fifty")
    assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_cancel_of_a_waiting_and_of_a_running_task(client: Client, ledger: Path, release: Path) -> None:
    waiting = await client.submit("echo", {}, delay=3600)
    await client.cancel(waiting.id)
    assert (await client.get(waiting.id)).state == State.TASK_STATE_CANCELLED
    running = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    await client.cancel(running.id)
    release.touch()
    ended = [event async for event in client.watch(running.id, after_sequence=0)][-1]
    assert ended.state_change.state == State.TASK_STATE_CANCELLED
    assert (await client.get(running.id)).state == State.TASK_STATE_CANCELLED


async def test_a_delayed_task_starts_when_due(client: Client) -> None:
    task = await client.submit("echo", {"n": 1}, delay=1)
    assert await client.result(task.id, timeout=30) == {"n": 1}
    ended = await client.get(task.id)
    assert (ended.start_time.ToDatetime() - ended.create_time.ToDatetime()).total_seconds() >= 1


async def test_a_deadline_ends_a_waiting_and_a_running_task(client: Client, ledger: Path, release: Path) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=2)
    running = await client.submit("waits", {"ledger": str(ledger), "release": str(release)}, deadline=soon)
    with pytest.raises(errors.TaskExpired):
        await client.result(running.id, timeout=30)
    assert lines_of(ledger) == ["start 1"]


async def test_a_paused_queue_waits_and_a_purged_one_is_empty(client: Client) -> None:
    await client.queues.pause("batches")
    try:
        task = await client.submit("measure", {"n": 1, "ledger": "unused"})
        queue = await client.queues.get("batches")
        assert queue.paused
        assert await client.queues.purge("batches") == 1
        assert (await client.get(task.id)).state == State.TASK_STATE_CANCELLED
    finally:
        await client.queues.resume("batches")


async def test_async_status_says_healthy(endpoints: Endpoints) -> None:
    def ask() -> dict[str, object]:
        with urllib.request.urlopen(f"{endpoints.http}/api/async-status", timeout=5) as answer:
            return dict(json.loads(answer.read()))

    status = await asyncio.to_thread(ask)
    assert status["status"] == "healthy"
    assert status["mode"] == "broker"
    assert status["queueCheck"] == {"hasTaskStream": True, "hasDeadLetterStream": True, "hasFallback": True}
    assert "default" in status["queues"]  # type: ignore[operator]
