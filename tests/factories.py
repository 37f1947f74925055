"""Valid things with few words: what a test does not care about, it does not say."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from headrace_core.db.pool import Database
from headrace_core.tasks.claim import claim
from headrace_core.tasks.model import (
    ClaimedUnit,
    Delivered,
    Holder,
    NewTask,
    Plan,
    TaskRecord,
    UnitId,
)
from headrace_core.tasks.settle import settle
from headrace_core.tasks.submit import submit

SHARDED_KIND = "sharded"
PLAIN_KIND = "plain"


def a_task(**changes: Any) -> NewTask:
    """A plain task of the default queue."""
    facts: dict[str, Any] = {
        "id": uuid4(),
        "namespace": "default",
        "kind": PLAIN_KIND,
        "queue": "default",
        "payload": b'{"n": 1}',
        "fingerprint": b"f",
    }
    return NewTask(**(facts | changes))


def a_holder(**changes: Any) -> Holder:
    """A consumer that can run both kinds."""
    facts: dict[str, Any] = {
        "id": uuid4(),
        "worker": "tester",
        "kinds": (PLAIN_KIND, SHARDED_KIND),
        "sharded": (SHARDED_KIND,),
    }
    return Holder(**(facts | changes))


async def submitted(db: Database, **changes: Any) -> TaskRecord:
    """A task that has been accepted."""
    (answer,) = await submit(db, [a_task(**changes)])
    return answer.task


async def claimed(db: Database, holder: Holder, task_id: UUID, unit: int = -1) -> ClaimedUnit:
    """A unit that `holder` has just started."""
    (answer,), _ = await claim(db, [Delivered(UnitId(task_id, unit), 1)], holder)
    assert answer.unit is not None, f"the claim of {task_id}/{unit} met {answer.verdict}"
    return answer.unit


async def planned(db: Database, holder: Holder, shards: int, needed: int | None = None) -> TaskRecord:
    """A sharded task whose plan is done."""
    task = await submitted(db, kind=SHARDED_KIND)
    unit = await claimed(db, holder, task.id)
    payloads = tuple(b'{"shard": %d}' % index for index in range(shards))
    await settle(db, [Plan(unit.lease, payloads, shards if needed is None else needed)])
    return task


async def row_of(db: Database, task_id: UUID, unit: int = -1) -> Mapping[str, Any]:
    """A unit's row."""
    (row,) = await db.fetch(
        "select * from headrace_core.units where task_id = %(task)s and unit = %(unit)s",
        {"task": task_id, "unit": unit},
    )
    return row


async def events_of(db: Database, task_id: UUID) -> Sequence[Mapping[str, Any]]:
    """A task's events in order."""
    return await db.fetch(
        "select * from headrace_core.events where task_id = %(task)s order by sequence", {"task": task_id}
    )
