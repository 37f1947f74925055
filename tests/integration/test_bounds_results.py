"""What bounds results (G8): each alone, and those that are settled together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from consumer import settling
from consumer.attempt import Attempt
from consumer.registry import RegisteredHandler
from consumer.settling import Settler
from headrace_core.db.pool import Database
from headrace_core.tasks import parts
from headrace_core.tasks.model import MERGE, Complete, Settled, Settlements
from headrace_core.tasks.submit import submit
from tests.factories import a_holder, a_task, claimed
from tests.fixtures.consumers import ConsumerRig

HANDLER = RegisteredHandler("plain", "default", 60.0, "async", batch=False, origin="tests", input_model=None)
LARGEST = 1024 * 1024 - 2


async def test_large_results_that_end_together_are_settled_in_parts(database_url: str) -> None:
    """Together they would be a statement that takes longer than it may, and be repeated for ever."""
    db = Database(database_url)
    await db.open()
    batches: list[int] = []

    applied: list[bool] = []
    all_answered = asyncio.Event()

    def note(settlements: Settlements) -> None:
        batches.append(len(settlements.answers))

    async def note_answers(answers: Sequence[tuple[Attempt, Settled]]) -> None:
        applied.extend(answer.applied for _, answer in answers)
        if len(applied) == 40:
            all_answered.set()

    settler = Settler(db, (), note, note_answers)
    holder = a_holder()
    tasks = [answer.task for answer in await submit(db, [a_task() for _ in range(40)])]
    units = [await claimed(db, holder, task.id) for task in tasks]
    result = b'"' + b"x" * (LARGEST - 2) + b'"'
    for unit in units:
        settler.settle(Attempt(unit, HANDLER, None), Complete(unit.lease, result))
    running = asyncio.create_task(settler.run())
    try:
        async with asyncio.timeout(30):
            await all_answered.wait()
        assert all(applied)
        assert sum(batches) == 40
        assert max(batches) * LARGEST <= settling.MAX_BATCH_BYTES
    finally:
        running.cancel()
        await asyncio.wait([running])
        await db.close()


async def test_the_largest_results_of_many_slots_are_stored(database_url: str, tmp_path: Path) -> None:
    rig = ConsumerRig(database_url, None, tmp_path)
    await rig.open()
    try:
        tasks = await rig.submit_many("bad-async", [{"value": "largest"}] * 24)
        await rig.consumer(handlers="tests.handlers.bad_values")
        for task in tasks:
            row = await rig.ended(task, within=30)
            assert (row["state"], len(row["result"])) == ("COMPLETED", LARGEST)
    finally:
        await rig.close()


async def test_parts_that_are_too_large_together_fail_the_merge_at_once(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_PARTS_BYTES", 40)  # {"fine":true} three times are 39
    rig = ConsumerRig(database_url, None, tmp_path)
    await rig.open()
    try:
        fits = await rig.submit("bad-shards", {"place": "", "value": ""})
        large = await rig.submit("bad-shards", {"place": "shard", "value": "somewhat-larger"})
        await rig.consumer(handlers="tests.handlers.bad_values")
        await rig.result(fits)
        row = await rig.ended(large)
        assert (row["state"], row["reason"]) == ("FAILED", "NON_RETRYABLE")
        assert "the parts have 54 bytes; at most 40 are allowed" in json.loads(row["error"])["message"]
        assert (await rig.row(large.id, MERGE))["attempt"] == 1
    finally:
        await rig.close()
