"""Tasks through a real consumer: every execution, every way to end."""

import json
import os

import pytest

from headrace_core.bus.errors import BusError
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from tests.factories import events_of
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually


async def test_an_async_handler_gets_its_model_and_its_result_is_stored(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("double", {"n": 21})
    assert await rig.result(task) == {"doubled": 42, "attempt": 1}
    await eventually(lambda: _is_empty(rig), what="the acknowledgement")


async def test_echo_is_built_in(rig: ConsumerRig) -> None:
    await rig.consumer(handlers="consumer.builtin.echo")
    assert await rig.result(await rig.submit("echo", {"n": 12345678901234567890})) == {"n": 12345678901234567890}


async def test_a_plain_function_runs_in_a_thread_and_reports(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("plain-thread", {"n": 1})
    assert (await rig.result(task))["thread"].startswith("headrace-default")
    events = await events_of(rig.db, task.id)
    assert [event["type"] for event in events] == ["state", "state", "progress", "output", "state"] or [
        event["type"] for event in events
    ] == ["state", "state", "output", "progress", "state"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))


async def test_a_process_handler_runs_elsewhere_and_reports(rig: ConsumerRig) -> None:
    await rig.consumer()
    first, second = await rig.submit("plain-process", {"n": 1}), await rig.submit("plain-process", {"n": 2})
    results = [await rig.result(first), await rig.result(second)]
    assert {result["n"] for result in results} == {1, 2}
    assert os.getpid() not in {result["pid"] for result in results}
    texts = [event["text"] for event in await events_of(rig.db, first.id) if event["type"] == "output"]
    assert texts == ["from a process"]


async def test_progress_and_output_come_before_the_end_and_join_by_offset(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("talk", {"times": 50})
    assert await rig.result(task) == "said"
    events = await events_of(rig.db, task.id)
    assert events[-1]["terminal"]
    outputs = [event for event in events if event["type"] == "output"]
    joined = b""
    for event in outputs:
        assert event["byte_offset"] == len(joined)
        joined += event["text"].encode()
    assert joined.decode() == "".join(f"word {index};" for index in range(50))
    assert [event["fraction"] for event in events if event["type"] == "progress"][-1] == 1.0


@pytest.mark.usefixtures("relay")
async def test_failures_are_retried_with_the_checkpoint(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("fails-twice")
    assert await rig.result(task) == {"attempt": 3, "seen": 2}
    assert (await rig.row(task.id))["failures"] == 2


@pytest.mark.usefixtures("relay")
async def test_the_third_failure_is_a_dead_letter_in_both_places(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("always-fails")
    row = await rig.ended(task)
    assert (row["state"], row["reason"], row["failures"]) == ("FAILED", "ATTEMPTS_EXHAUSTED", 3)
    assert json.loads(row["error"])["message"] == "attempt 3 failed"
    await eventually(lambda: _dead_letters(rig), what="the entry in the DLQ stream")


async def test_a_non_retryable_error_fails_at_once(rig: ConsumerRig) -> None:
    await rig.consumer()
    row = await rig.ended(await rig.submit("non-retryable"))
    assert (row["state"], row["reason"], row["attempt"]) == ("FAILED", "NON_RETRYABLE", 1)
    assert json.loads(row["error"])["type"] == "BAD_DOCUMENT"


@pytest.mark.usefixtures("relay")
async def test_retry_after_delays_the_next_attempt(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("retry-after", {"seconds": 0.5})
    assert await rig.result(task) == 2
    row = await rig.row(task.id)
    assert (row["attempt_at"] - row["started_at"]).total_seconds() >= 0.5


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("kind", ["slow", "slow-thread", "slow-process"])
async def test_a_handler_past_its_timeout_is_charged_a_failure(rig: ConsumerRig, kind: str) -> None:
    await rig.consumer()
    row = await rig.ended(await rig.submit(kind, max_attempts=1), within=15)
    assert (row["state"], row["failures"], row["crashes"]) == ("FAILED", 1, 0)
    assert "timeout" in json.loads(row["error"])["message"]


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize(("kind", "says"), [("segfault", "SIGSEGV"), ("exits", "code 3")])
async def test_a_crash_costs_one_task(rig: ConsumerRig, kind: str, says: str) -> None:
    await rig.consumer()
    crashing, other = await rig.submit(kind, max_crashes=2), await rig.submit("waits")
    row = await rig.ended(crashing, within=20)
    assert (row["state"], row["crashes"], row["failures"]) == ("FAILED", 2, 0)
    assert says in json.loads(row["error"])["message"]
    neighbour = await rig.row(other.id)
    assert (neighbour["state"], neighbour["attempt"]) == ("PROCESSING", 1)


@pytest.mark.parametrize("payload", [{}, {"nan": True}])
async def test_a_result_that_is_no_json_fails_for_good(rig: ConsumerRig, payload: dict[str, bool]) -> None:
    await rig.consumer()
    row = await rig.ended(await rig.submit("not-json", payload))
    assert (row["state"], row["reason"]) == ("FAILED", "NON_RETRYABLE")


async def test_a_payload_that_does_not_fit_fails_without_its_values_in_the_error(rig: ConsumerRig) -> None:
    await rig.consumer()
    row = await rig.ended(await rig.submit("double", {"n": "secret"}))
    assert row["reason"] == "NON_RETRYABLE"
    assert "secret" not in row["error"].decode()


async def test_a_batch_is_one_call_and_each_task_is_settled_on_its_own(rig: ConsumerRig) -> None:
    await rig.consumer()
    tasks = await rig.submit_many("batch-double", [{"n": 1}, {"n": 2}, {"n": "bad"}, {"n": 13}], max_attempts=1)
    results = [await rig.result(task) for task in tasks[:2]]
    assert [result["doubled"] for result in results] == [2, 4]
    assert results[0]["of"] == results[0]["ids"] == 3
    refused, unlucky = await rig.ended(tasks[2]), await rig.ended(tasks[3])
    assert (refused["reason"], unlucky["reason"]) == ("NON_RETRYABLE", "ATTEMPTS_EXHAUSTED")


async def test_a_batch_in_a_thread(rig: ConsumerRig) -> None:
    await rig.consumer()
    tasks = await rig.submit_many("batch-thread", [{"n": n} for n in range(16)])
    assert [(await rig.result(task))["n"] for task in tasks] == list(range(16))


async def test_a_batch_answer_of_the_wrong_length_fails_each(rig: ConsumerRig) -> None:
    await rig.consumer()
    tasks = await rig.submit_many("batch-wrong", [{}, {}], max_attempts=1)
    rows = [await rig.ended(task) for task in tasks]
    assert {row["state"] for row in rows} == {"FAILED"}
    assert "returned 0 answers" in json.loads(rows[0]["error"])["message"]


@pytest.mark.usefixtures("relay")
async def test_shards_run_on_their_own_and_are_merged_once(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("count-words", {"texts": ["a b", "flaky", "c"]})
    assert await rig.result(task) == {"total": 4, "parts": [2, 1, 1], "asked": 3}
    assert (await rig.row(task.id, 0))["attempt"] == 1
    assert (await rig.row(task.id, 1))["attempt"] == 2


async def test_a_quorum_leaves_parts_out(rig: ConsumerRig) -> None:
    await rig.consumer()
    task = await rig.submit("count-words-tolerant", {"texts": ["bad", "a b"]})
    assert await rig.result(task) == {"total": 2, "parts": [2], "asked": 2}


async def test_no_shards_are_merged_too(rig: ConsumerRig) -> None:
    await rig.consumer()
    assert (await rig.result(await rig.submit("count-words", {"texts": []})))["parts"] == []


async def test_a_message_that_is_no_task_becomes_a_dead_letter(rig: ConsumerRig) -> None:
    await rig.consumer()
    assert rig.bus is not None
    publisher = Publisher(rig.bus)
    await publisher.publish([OutgoingMessage("headrace.tasks.default.high", b"\xff nonsense")])
    await publisher.close()
    await eventually(lambda: _dead_letters(rig), what="the entry in the DLQ stream")
    (letter,) = await rig.db.fetch("select * from headrace_core.dead_letters")
    assert (letter["task_id"], letter["reason"]) == (None, "UNPARSEABLE_MESSAGE")
    await eventually(lambda: _is_empty(rig), what="the termination")


async def test_a_message_at_the_same_number_of_a_stream_made_anew_is_another_dead_letter(rig: ConsumerRig) -> None:
    await rig.consumer()
    assert rig.bus is not None
    for times in (1, 2):
        await rig.bus.send("headrace.tasks.default.high", b"nonsense")
        await eventually(lambda: _letters_are(rig, times), what="the dead letter")  # noqa: B023 - awaited here
        await rig.bus.request(f"$JS.API.STREAM.DELETE.{rig.names.tasks}")
        await eventually(lambda: _is_empty(rig), within=20, what="the stream made anew", ignoring=(BusError,))
    letters = await rig.db.fetch("select id from headrace_core.dead_letters")
    assert {row["id"].split("-")[1] for row in letters} == {"1"}


async def _letters_are(rig: ConsumerRig, count: int) -> bool:
    return len(await rig.db.fetch("select 1 from headrace_core.dead_letters")) == count


async def test_max_concurrency_holds(rig: ConsumerRig) -> None:
    await rig.consumer(toml='queues = [{name = "default", ack_wait = "5s", max_concurrency = 3}]\n')
    tasks = await rig.submit_many("counts-itself", [{}] * 30)
    assert max([await rig.result(task) for task in tasks]) == 3


async def test_rate_limit_spreads_the_starts(rig: ConsumerRig) -> None:
    await rig.consumer(toml='queues = [{name = "default", ack_wait = "5s", rate_limit = 10.0}]\n')
    tasks = await rig.submit_many("double", [{"n": n} for n in range(16)])
    rows = [await rig.ended(task) for task in tasks]
    starts = sorted(row["started_at"] for row in rows)
    # One at once, then ten a second: a second's worth may have gathered while nothing was there to start.
    assert (starts[-1] - starts[0]).total_seconds() >= 0.4


async def test_what_has_started_goes_before_everything_new(rig: ConsumerRig) -> None:
    toml = 'queues = [{name = "default", ack_wait = "5s", max_concurrency = 1, backoff = {initial = "0ms"}}]\n'
    await rig.consumer(toml=toml)
    crowd = await rig.submit_many("counts-itself", [{}] * 40, priority=3)
    task = await rig.submit("count-words", {"texts": ["a", "b"]}, priority=3)
    await rig.result(task, within=20)
    first = (await rig.row(task.id))["started_at"]
    last = max([(await rig.row(task.id, unit))["started_at"] for unit in (0, 1, -2)])
    starts = [(await rig.row(item.id))["started_at"] for item in crowd]
    between = [start for start in starts if start and first < start < last]
    assert len(between) <= 6, "shards and the merge waited behind tasks that had not started"


async def _is_empty(rig: ConsumerRig) -> bool:
    return await rig.unacknowledged() == 0


async def _dead_letters(rig: ConsumerRig) -> int:
    assert rig.bus is not None
    info = await rig.bus.request(f"$JS.API.STREAM.INFO.{rig.names.dead_letters}")
    return int(info["state"]["messages"])
