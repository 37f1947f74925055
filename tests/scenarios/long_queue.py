"""What has started does not queue behind 100,000 new tasks, and what backs off does not slow fresh ones down.

`python -m tests.scenarios.long_queue [--waiting 100000] [--backing-off 2000]`, about two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from headrace import Client
from headrace_core.db.pool import Database
from headrace_core.stack.dev import LocalStack
from tests.fixtures.servers import handlers_path
from tests.fixtures.waiting import eventually

LIMIT_SECONDS = 2.0
SAMPLES = 40
FRESH = 6000
USUAL = 0.7
"""Of the rate without backing-off tasks; runs of one machine differ by as much."""

WAITING = "state = 'PENDING'"
HANDED_BACK = """
select extract(epoch from started.at - back.at)::float8 as seconds
from headrace_core.units u
join headrace_core.events back on back.task_id = u.task_id and back.state = 'PENDING' and back.reason = 'INTERRUPTED'
join headrace_core.events started on started.task_id = u.task_id and started.sequence = back.sequence + 1
where u.kind = 'queue-holds'
"""
DUE = """
select extract(epoch from started.at - failed.due_at)::float8 as seconds
from headrace_core.units u
join headrace_core.events failed on failed.task_id = u.task_id and failed.due_at is not null
join headrace_core.events started on started.task_id = u.task_id and started.sequence = failed.sequence + 1
where u.kind = 'queue-retries'
"""
SHARDS = """
select extract(epoch from s.started_at - t.planned_at)::float8 as seconds
from headrace_core.units t join headrace_core.units s on s.task_id = t.task_id and s.unit >= 0
where t.kind = 'queue-stages' and t.unit = -1
"""
MERGES = """
select extract(epoch from m.started_at - max(s.ended_at))::float8 as seconds
from headrace_core.units m join headrace_core.units s on s.task_id = m.task_id and s.unit >= 0
where m.kind = 'queue-stages' and m.unit = -2 group by m.task_id, m.started_at
"""
RATE = """
select count(*) / extract(epoch from max(ended_at) - min(created_at))::float8 as rate
from headrace_core.units where kind = 'queue-quick' and task_id = any(%(ids)s)
"""


async def count(db: Database, condition: str) -> int:
    (row,) = await db.fetch(f"select count(*) as n from headrace_core.units where {condition}", timeout=30)
    return int(row["n"])


async def report(db: Database, what: str, query: str, wanted: int) -> bool:
    """Print how long one sort of units waited; whether all of them kept the limit."""
    seconds = sorted(row["seconds"] for row in await db.fetch(query))
    kept = len(seconds) >= wanted and seconds[-1] <= LIMIT_SECONDS
    middle, worst = (seconds[len(seconds) // 2], seconds[-1]) if seconds else (0.0, 0.0)
    verdict = "ok" if kept else "MISSED"
    print(f"{what:22} {len(seconds):4} units   median {middle:6.3f} s   worst {worst:6.3f} s   {verdict}")
    return kept


async def behind_a_long_queue(stack: LocalStack, client: Client, db: Database, waiting: int) -> bool:
    """Fill the queue, then let things go on that had started."""
    held = await client.submit_many([{}] * SAMPLES, kind="queue-holds")
    await eventually(lambda: all_hold(db), within=30)
    await client.submit_many([{}] * waiting, kind="queue-nap")
    urgent = await client.submit_many([{"seconds": 3}] * SAMPLES, kind="queue-retries", priority="high")
    urgent += await client.submit_many([{}] * SAMPLES, kind="queue-stages", priority="high")
    print(f"{await count(db, WAITING)} units wait")
    for consumer in ("consumer-1", "consumer-2"):
        await stack.stop_part(consumer)
        await stack.start_part(consumer)
    for task in [*held, *urgent]:
        await client.result(task.id, timeout=120)
    print(f"{await count(db, WAITING)} units still wait")
    found = [
        await report(db, "handed-back unit", HANDED_BACK, SAMPLES),
        await report(db, "retry that is due", DUE, SAMPLES),
        await report(db, "shard after its plan", SHARDS, 3 * SAMPLES),
        await report(db, "merge after its shards", MERGES, SAMPLES),
    ]
    return all(found)


async def all_hold(db: Database) -> bool:
    """Whether every held task has its checkpoint."""
    return await count(db, "kind = 'queue-holds' and checkpoint is not null") == SAMPLES


async def rate_of_fresh_ones(client: Client, db: Database) -> float:
    """Tasks a second, from the first submit to the last end."""
    tasks = await client.submit_many([{}] * FRESH, kind="queue-quick")
    await eventually(lambda: nothing_is_open(db), within=120)
    (row,) = await db.fetch(RATE, {"ids": [task.id for task in tasks]})
    return float(row["rate"])


async def nothing_is_open(db: Database) -> bool:
    return not await count(db, "kind = 'queue-quick' and state in ('PENDING', 'PROCESSING')")


async def beside_backing_off_ones(client: Client, db: Database, backing_off: int) -> bool:
    """The rate of fresh tasks, before and while many wait for their next attempt."""
    await rate_of_fresh_ones(client, db)  # warm
    before = await rate_of_fresh_ones(client, db)
    await client.submit_many([{"seconds": 600}] * backing_off, kind="queue-retries")
    await eventually(lambda: all_back_off(db, backing_off), within=120)
    after = await rate_of_fresh_ones(client, db)
    kept = after >= USUAL * before
    print(
        f"fresh tasks: {before:.0f} a second; with {backing_off} in backoff {after:.0f} a second   "
        + ("ok" if kept else "MISSED")
    )
    return kept


async def all_back_off(db: Database, number: int) -> bool:
    condition = "kind = 'queue-retries' and state = 'PENDING' and failures = 1 and due_at > now() + interval '1 minute'"
    return await count(db, condition) == number


async def run(waiting: int, backing_off: int) -> bool:
    """Both halves on one stack; whether every limit was kept."""
    with tempfile.TemporaryDirectory(prefix="headrace-long-queue-") as folder:
        environment = {"PYTHONPATH": handlers_path()}
        async with LocalStack(Path(folder) / "stack", handlers=["long_queue"], environment=environment) as stack:
            ends = stack.endpoints
            db = Database(ends.database_url)
            await db.open()
            async with Client(producer=ends.producer, status=ends.status, timeout=60) as client:
                behind = await behind_a_long_queue(stack, client, db, waiting)
                await client.queues.purge("default", timeout=60)
                await eventually(lambda: naps_are_over(db), within=30)
                beside = await beside_backing_off_ones(client, db, backing_off)
            await db.close()
    return behind and beside


async def naps_are_over(db: Database) -> bool:
    return not await count(db, "kind = 'queue-nap' and state in ('PENDING', 'PROCESSING')")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=100_000, help="tasks that wait in the queue")
    parser.add_argument("--backing-off", type=int, default=2000, help="tasks that wait for their next attempt")
    arguments = parser.parse_args()
    sys.exit(0 if asyncio.run(run(arguments.waiting, arguments.backing_off)) else 1)


if __name__ == "__main__":
    main()
