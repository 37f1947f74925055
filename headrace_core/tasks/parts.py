"""What a merge works on: the task's payload, and the parts that were frozen when its quorum was reached."""

from __future__ import annotations

from uuid import UUID

from headrace_core.db.pool import Database, Transaction
from headrace_core.tasks.model import TASK

_PAYLOAD = "select payload from headrace_core.units where task_id = %(task)s and unit = %(unit)s"
_SIZE = """
select coalesce(sum(octet_length(result::text)), 0)::int8 as size from headrace_core.units
where task_id = %(task)s and unit >= 0 and state = 'COMPLETED'
"""
_PARTS = """
select result from headrace_core.units
where task_id = %(task)s and unit >= 0 and state = 'COMPLETED'
order by unit
"""


MAX_PARTS_BYTES = 64 * 1024 * 1024
"""Of all parts of a merge: 10,000 parts of 1 MiB would take the consumer down, and its neighbours with it."""


class PartsTooLarge(Exception):
    """A merge has more to work on than fits; no retry would change that."""


async def merge_input(db: Database, task_id: UUID) -> tuple[bytes, list[bytes]]:
    """The payload, and the results of the completed shards in plan order; all JSON text.

    A retried merge reads the same: the shards that were open when the quorum was reached have ended then.

    Raises:
        PartsTooLarge: they have more than MAX_PARTS_BYTES.
        DatabaseUnavailable: Postgres does not answer.
    """

    async def work(tx: Transaction) -> tuple[bytes, list[bytes]]:
        task = await tx.fetch(_PAYLOAD, {"task": task_id, "unit": TASK})
        (found,) = await tx.fetch(_SIZE, {"task": task_id})
        if found["size"] > MAX_PARTS_BYTES:
            raise PartsTooLarge(
                f"the parts have {found['size']} bytes; at most {MAX_PARTS_BYTES} are allowed in all:"
                " let run_shard store what is large elsewhere, and return where it is"
            )
        parts = await tx.fetch(_PARTS, {"task": task_id})
        return task[0]["payload"], [row["result"] for row in parts]

    return await db.run(work)
