"""For each variant the short story in which it must show. Without the variant every one of them is clean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from tests.faults.broken.stage import Drill, Stage

LEASE_SECONDS = 4.0
GIVE_UP_SECONDS = 7.0
"""Below the silence after which the SDK would connect anew and see what the server kept from it."""


async def frozen_holder(stage: Stage) -> None:
    """A consumer stands still beyond its lease with tasks in hand, and goes on when others have finished them."""
    tasks = [await stage.submit("plain", {"work": 1.0}, result=2, failures=0) for _ in range(8)]
    # Its handlers are at work: one that was stopped before they began would begin as it goes on, and be fenced first.
    row = await stage.until(tasks[0], lambda row: row["fraction"] > 0)
    with stage.frozen(stage.consumer_of(row)):
        await stage.until(tasks[0], lambda row: row["state"] == "COMPLETED")
    await stage.ended(*tasks)
    # The one that was frozen writes when it goes on, if it may.
    await asyncio.sleep(0.5)


async def unreachable_at_the_end(stage: Stage) -> None:
    """Postgres cannot be reached for a moment, just as a handler returns. The lease outlives it."""
    # It reports nothing: a report would be waited for, and the settlement with it.
    task = await stage.submit("flaky", {"work": 0.6, "times": 0}, result=7, failures=0, interruptions=0)
    consumer = stage.consumer_of(await stage.running(task))
    await stage.strike("cut", f"{consumer}>postgres", 1.5)
    await stage.ended(task)


async def a_retry(stage: Stage) -> None:
    """A task fails once and waits for its second attempt."""
    task = await stage.submit("flaky", {"times": 1}, result=7, failures=1)
    await stage.ended(task, within=12.0)


async def a_success(stage: Stage) -> None:
    """A task does its work."""
    await stage.ended(await stage.submit("plain", {}, result=2, failures=0))


async def a_roll_out(stage: Stage) -> None:
    """A consumer is stopped within the duplicate window of the message that it hands back."""
    task = await stage.submit("slow", {"work": 0.25, "steps": 28}, result=29, failures=0)
    consumer = stage.consumer_of(await stage.running(task))
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.strike("roll_out", consumer))
        stage.note(await stage.until(task, lambda row: row["interruptions"] > 0))
    await stage.ended(task)


async def shards_that_end_at_once(stage: Stage) -> None:
    """The shards of a task run on both consumers and end at the same moment."""
    value = sum((1 + index) ** 2 for index in range(8))
    payload = {"count": 8, "work": 0.3}
    tasks = [await stage.submit("sharded", payload, result=value, shards=8) for _ in range(3)]
    await stage.ended(*tasks, within=15.0)


async def a_cancel_while_it_reports(stage: Stage) -> None:
    """A task is cancelled while its first reports are on their way. It starts late, so that it is watched by then."""
    tasks = [await stage.submit("plain", {"work": 6.0}, delay=1.5, states=["CANCELLED"]) for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(_watch(stage, task))
            group.create_task(_cancel_after(stage, task, 3))
    await stage.ended(*tasks)
    for task in tasks:
        await stage.written(task)


async def an_end_without_a_wake(stage: Stage) -> None:
    """A watched task ends while the status service cannot hear of it."""
    task = await stage.submit("plain", {"work": 2.0}, result=2, failures=0)
    await stage.running(task)
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(stage, task))
        await asyncio.sleep(0.5)
        await stage.strike("cut", "status>nats", 4.0)
    await stage.ended(task)


async def a_redrive(stage: Stage) -> None:
    """A failed task is redriven, with a payload that works."""
    payload = {"at_once": True}
    task = await stage.submit("hopeless", payload, states=["COMPLETED"], result=11)
    await stage.until(task, lambda row: row["state"] == "FAILED")
    await stage.client.redrive(task, {"n": 1, "work": 0.0, "healed": True})
    await stage.until(task, lambda row: row["generation"] == 2)
    await stage.ended(task, within=10.0)


async def an_outage_of_one_consumer(stage: Stage) -> None:
    """A consumer lives and cannot reach Postgres for longer than its lease."""
    task = await stage.submit("plain", {"work": 10.0}, result=2, failures=0)
    consumer = stage.consumer_of(await stage.running(task))
    await asyncio.sleep(0.5)
    await stage.strike("cut", f"{consumer}>postgres", LEASE_SECONDS * 2)
    await stage.ended(task)


async def _watch(stage: Stage, task: str) -> None:
    """Watch to the end; a watch that does not end is given up, and the history says so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GIVE_UP_SECONDS):
            await stage.client.watch(task)


async def _cancel_after(stage: Stage, task: str, sequence: int) -> None:
    """Cancel as soon as the row has given out this number."""
    await stage.until(task, lambda row: row["sequence"] >= sequence)
    await stage.client.cancel(task)


@dataclass(frozen=True, slots=True)
class Case:
    """A variant's drill, and the findings of which each must fire."""

    drill: Drill
    caught_by: tuple[str, ...]


CASES: Mapping[str, Case] = {
    "unfenced_write": Case(frozen_holder, ("result_writer_is_latest_holder", "two_terminal_states")),
    "ack_before_settling": Case(unreachable_at_the_end, ("wrong_results",)),
    "lost_outbox_row": Case(a_retry, ("lost",)),
    "doubled_event": Case(a_success, ("two_terminal_states", "events_after_terminal")),
    "hand_back_same_message_id": Case(a_roll_out, ("publications_numbered",)),
    "lost_fan_in": Case(shards_that_end_at_once, ("lost", "one_merge")),
    "sequences_out_of_commit_order": Case(a_cancel_while_it_reports, ("watch_gaps_explained",)),
    "watch_trusts_wakes": Case(an_end_without_a_wake, ("watch_ends_with_last",)),
    "epochs_restart_at_redrive": Case(a_redrive, ("epochs_rise_and_never_restart",)),
    "crash_charged_after_outage": Case(an_outage_of_one_consumer, ("budgets_not_mixed", "wrong_results")),
}
"""By the variant's name."""
