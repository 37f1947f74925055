"""The three budgets through a real consumer, and what is known of each way to fail (G4)."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from headrace_core.bus.declaration import durable_name
from headrace_core.tasks.outcome import Interrupted, interrupt
from headrace_core.tasks.publication import of_submitted
from headrace_core.tasks.settle import settle
from headrace_core.tasks.takeover import read_leases, take_over
from headrace_core.telemetry import metrics
from tests.factories import a_holder, claimed, events_of
from tests.fixtures.consumers import SAMPLES, ConsumerRig
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually
from tests.handlers import stubborn

STUBBORN = stubborn.__name__
TOML = 'queues = [{name = "default", ack_wait = "1s", backoff = {initial = "20ms"}}]\n'


def message_of(row: Any) -> str:
    return str(json.loads(row["error"])["message"])


@pytest.mark.usefixtures("relay")
async def test_two_failures_two_crashes_and_five_interruptions_then_success(rig: ConsumerRig) -> None:
    plan = "ficiificir"
    consumer = await rig.consumer(handlers=STUBBORN, toml=TOML, finish_seconds="0")
    task = await rig.submit("mixed-luck", {"plan": plan})
    for number in (index + 1 for index, step in enumerate(plan) if step == "i"):
        await eventually(lambda: _has_begun(rig, task.id, number), within=30, what=f"attempt {number}")  # noqa: B023
        await rig.stop(consumer)
        consumer = await rig.consumer(handlers=STUBBORN, toml=TOML, finish_seconds="0")
    assert await rig.result(task, within=30) == 10
    row = await rig.row(task.id)
    assert (row["failures"], row["crashes"], row["interruptions"], row["suspect"]) == (2, 2, 5, False)


async def _has_begun(rig: ConsumerRig, task_id: Any, attempt: int) -> bool:
    return any(event["type"] == "output" and event["attempt"] == attempt for event in await events_of(rig.db, task_id))


@pytest.mark.usefixtures("relay")
@pytest.mark.parametrize("limit", [1, 5])
async def test_max_attempts_means_just_that(rig: ConsumerRig, limit: int) -> None:
    await rig.consumer(toml=TOML)
    row = await rig.ended(await rig.submit("always-fails", max_attempts=limit), within=30)
    assert (row["state"], row["reason"]) == ("FAILED", "ATTEMPTS_EXHAUSTED")
    assert (row["attempt"], row["failures"], row["crashes"], row["interruptions"]) == (limit, limit, 0, 0)


async def test_a_hundred_interruptions_are_a_failure_of_their_own_kind(rig: ConsumerRig) -> None:
    task = await rig.submit("double", {"n": 1}, publish=False)
    holder = a_holder(kinds=("double",))
    for _ in range(100):
        unit = await claimed(rig.db, holder, task.id)
        handed_back = interrupt(unit.lease, unit.interruptions, Interrupted("the consumer is stopping"))
        (answer,) = (await settle(rig.db, [handed_back])).answers
        assert answer.applied
    row = await rig.row(task.id)
    assert (row["state"], row["reason"]) == ("FAILED", "INTERRUPTED_TOO_OFTEN")
    assert (row["failures"], row["crashes"], row["interruptions"]) == (0, 0, 100)
    (letter,) = await rig.db.fetch("select * from headrace_core.dead_letters")
    assert (letter["task_id"], letter["reason"]) == (task.id, "INTERRUPTED_TOO_OFTEN")
    assert json.loads(letter["budgets"])["interruptions"] == 100


@pytest.mark.usefixtures("relay")
async def test_a_crash_says_how_the_process_ended_and_how_far_the_unit_had_come(rig: ConsumerRig) -> None:
    await rig.consumer(handlers=f"{STUBBORN},{SAMPLES}", toml=TOML)
    late, silent = await rig.submit("segfaults-late", max_crashes=1), await rig.submit("exits", max_crashes=1)
    row = await rig.ended(late, within=30)
    assert (row["reason"], message_of(row)) == (
        "CRASHED",
        "killed by SIGSEGV (signal 11); last progress 0.40 'loading page 7'",
    )
    assert message_of(await rig.ended(silent, within=30)) == "exited with code 3; it had reported no progress"
    (letter,) = await rig.db.fetch(
        "select error from headrace_core.dead_letters where task_id = %(id)s", {"id": late.id}
    )
    assert "loading page 7" in message_of(letter)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("stands-still", "the last: 0.40 'loading'"),
        ("stands-still-thread", "it has reported none"),
        ("stands-still-process", "the last: 0.40 'loading'"),
        ("stands-still-batch", "it has reported none"),
    ],
)
async def test_a_handler_that_makes_no_progress_is_a_failure_by_timeout(rig: ConsumerRig, kind: str, last: str) -> None:
    await rig.consumer(handlers=STUBBORN, toml=TOML)
    row = await rig.ended(await rig.submit(kind, max_attempts=1), within=30)
    assert (row["state"], row["failures"], row["crashes"], row["interruptions"]) == ("FAILED", 1, 0, 0)
    assert json.loads(row["error"])["type"] == "TimeoutError"
    assert message_of(row) == f"no progress for 0.3 s (progress_timeout); {last}"


async def test_the_reason_of_a_standstill_that_is_retried_is_a_timeout(rig: ConsumerRig) -> None:
    await rig.consumer(handlers=STUBBORN, toml=TOML)
    task = await rig.submit("stands-still", max_attempts=2)

    async def first_reason() -> str:
        events = [event for event in await events_of(rig.db, task.id) if event["reason"]]
        return str(events[0]["reason"]) if events else ""

    assert await eventually(first_reason) == "TIMEOUT"


async def test_a_shard_that_makes_no_progress_is_ended(rig: ConsumerRig) -> None:
    await rig.consumer(handlers=STUBBORN, toml=TOML)
    row = await rig.ended(await rig.submit("stands-still-shard", max_attempts=1), within=30)
    assert (row["state"], message_of(row).partition(";")[0]) == ("FAILED", "no progress for 0.3 s (progress_timeout)")


async def test_any_report_counts_as_progress(rig: ConsumerRig) -> None:
    await rig.consumer(handlers=STUBBORN, toml=TOML)
    assert await rig.result(await rig.submit("moves-on", max_attempts=1), within=30) == "done"


async def test_waiting_for_postgres_is_no_standstill(database_url: str, nats_url: str, tmp_path: Path) -> None:
    port = int(database_url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with Proxy(port) as proxy:
        rig = ConsumerRig(database_url, nats_url, tmp_path)
        await rig.open()
        try:
            rig._url = proxy.url(database_url)
            await rig.consumer(handlers=STUBBORN, toml=TOML.replace("1s", "30s"))
            task = await rig.submit("moves-on", max_attempts=1)
            await rig.has_begun(task)
            await proxy.cut()
            until = time.monotonic() + 3 * stubborn.PATIENCE.total_seconds()
            await eventually(lambda: time.monotonic() > until, what="a silence that is not held against it")
            await proxy.restore()
            assert await rig.result(task, within=30) == "done"
        finally:
            await rig.close()


async def test_after_a_fenced_settlement_the_message_is_neither_acknowledged_nor_returned(rig: ConsumerRig) -> None:
    # The renewals are too far apart to be what notices.
    consumer = await rig.consumer(toml='queues = [{name = "default", ack_wait = "60s"}]\n')
    task = await rig.submit("finishes-when-asked", publish=False)
    await rig.publish([of_submitted(task)])
    await rig.has_begun(task)
    (answer,) = (await take_over(rig.db, await read_leases(rig.db))).answers
    assert answer.applied
    fenced = metrics.fenced_total._value.get()
    works = consumer._works
    assert works is not None
    works.units.ask_all()
    await eventually(lambda: metrics.fenced_total._value.get() > fenced, what="the fenced settlement")
    await eventually(lambda: works.units.running == 0, what="the end of the unit")
    assert rig.bus is not None
    info = await rig.bus.request(f"$JS.API.CONSUMER.INFO.{rig.names.tasks}.{durable_name('default', 'normal')}")
    assert (info["num_ack_pending"], info["num_redelivered"]) == (1, 0)


async def test_a_consumer_that_lost_its_leases_and_lives_clears_the_suspicion(
    database_url: str, nats_url: str, tmp_path: Path
) -> None:
    port = int(database_url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])
    async with Proxy(port) as proxy:
        rig = ConsumerRig(database_url, nats_url, tmp_path)
        await rig.open()
        try:
            rig._url = proxy.url(database_url)
            await rig.consumer(toml=TOML)
            task = await rig.submit("waits")
            await rig.has_begun(task)
            await proxy.cut()
            await rig.db.fetch("update headrace_core.queues set paused_at = now() returning 1")
            await eventually(lambda: _taken_over(rig), what="the takeover")
            row = await rig.row(task.id)
            assert (row["state"], row["suspect"]) == ("PENDING", True)
            await proxy.restore()

            async def cleared() -> bool:
                return not (await rig.row(task.id))["suspect"]

            await eventually(cleared, within=15, what="the cleared suspicion")
            row = await rig.row(task.id)
            assert (row["failures"], row["crashes"], row["interruptions"]) == (0, 0, 1)
        finally:
            await rig.close()


async def _taken_over(rig: ConsumerRig) -> bool:
    return any(answer.applied for answer in (await take_over(rig.db, await read_leases(rig.db))).answers)
