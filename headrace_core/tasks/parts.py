"""What a merge works on: the task's payload, and the parts that were frozen when its quorum was reached."""

from __future__ import annotations

from uuid import UUID

from headrace_core.db.pool import Database, Transaction
from headrace_core.tasks.model import TASK

_PAYLOAD = "select payload from headrace_core.units where task_id = %(task)s and unit = %(unit)s"
_PARTS = """
select result from headrace_core.units
where task_id = %(task)s and unit >= 0 and state = 'COMPLETED'
order by unit
"""


async def merge_input(db: Database, task_id: UUID) -> tuple[bytes, list[bytes]]:
    """The payload, and the results of the completed shards in plan order; all JSON text.

    A retried merge reads the same: the shards that were open when the quorum was reached have ended then.
    """

    async def work(tx: Transaction) -> tuple[bytes, list[bytes]]:
        task = await tx.fetch(_PAYLOAD, {"task": task_id, "unit": TASK})
        parts = await tx.fetch(_PARTS, {"task": task_id})
        return task[0]["payload"], [row["result"] for row in parts]

    return await db.run(work)
