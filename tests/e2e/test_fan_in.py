"""A merge through real processes: killed while it runs, or cancelled, it is done once or not at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from headrace import Client
from headrace.errors import TaskCancelled
from headrace_core.db.pool import Database
from headrace_core.stack.testing import SteeredStack
from headrace_core.tasks.model import MERGE
from tests.e2e.running import lines_of
from tests.factories import row_of
from tests.fixtures.waiting import eventually


# The session's stack starts a new consumer in the killed one's place: it belongs to the stack and ends with it.
@pytest.mark.leaks_ok
async def test_a_merge_whose_consumer_is_killed_runs_again_on_the_same_parts(
    running_stack: SteeredStack, client: Client, db: Database, ledger: Path, release: Path
) -> None:
    payload = {"count": 4, "ledger": str(ledger), "merge_held": True, "release": str(release)}
    task = await client.submit("squares", payload)
    await eventually(lambda: "merge" in lines_of(ledger), within=20)
    await running_stack.kill_consumer(task.id)
    release.touch()
    assert await client.result(task.id, timeout=40) == {"sum": 14, "parts": 4}
    assert Counter(lines_of(ledger)) == {"merge": 2} | {f"shard {n}": 1 for n in range(4)}
    merge = await row_of(db, UUID(task.id), MERGE)
    assert (merge["attempt"], merge["failures"], merge["crashes"]) == (2, 0, 0)


async def test_a_merge_that_is_cancelled_while_it_runs_writes_nothing(
    client: Client, db: Database, ledger: Path, release: Path
) -> None:
    payload = {"count": 2, "ledger": str(ledger), "merge_held": True, "release": str(release)}
    task = await client.submit("squares", payload)
    await eventually(lambda: "merge" in lines_of(ledger), within=20)
    await client.cancel(task.id)
    release.touch()
    with pytest.raises(TaskCancelled):
        await client.result(task.id, timeout=20)
    row = await row_of(db, UUID(task.id))
    assert (row["state"], row["result"]) == ("CANCELLED", None)
    assert (await row_of(db, UUID(task.id), MERGE))["state"] == "CANCELLED"
    assert lines_of(ledger).count("merge") == 1
