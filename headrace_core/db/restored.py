"""What Postgres needs after it was restored to an earlier time: epochs that nobody has seen yet.

The restored rows count their epochs on from where the backup stood, so the next start of a unit may take a number that
an attempt of the lost time has shown to another system already. Ours is not misled: its writes carry the holder, too.
A system that fences by the epoch alone is.
"""

import psycopg

CONNECT_SECONDS = 5
# More starts than any unit can have had since a backup: 100 interruptions, and its attempts, in each generation.
STEP = 1_000_000
# All units whose task may start anything again, FAILED by a redrive. An ended task's epochs are not asked for any more.
_RAISE = """
update headrace_core.units u set epoch = u.epoch + %(step)s
from headrace_core.units t
where t.task_id = u.task_id and t.unit = -1 and t.state in ('PENDING', 'PROCESSING', 'FAILED')
"""


async def raise_epochs(database_url: str) -> int:
    """Raise every epoch that may be counted on, by a million; how many units that were.

    For a database that was just restored, before the services start. Who holds a lease all the same loses it, and the
    unit starts again: a holder from before the restore is none.

    Raises:
        psycopg.OperationalError: the database cannot be reached.
    """
    async with await psycopg.AsyncConnection.connect(database_url, connect_timeout=CONNECT_SECONDS) as connection:
        return (await connection.execute(_RAISE.encode(), {"step": STEP})).rowcount
