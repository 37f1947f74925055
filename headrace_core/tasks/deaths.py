"""Consumers that died, as their supervisor saw it: what they held need not wait for its lease.

A wrong report costs an interruption: a consumer that lives finds its lease gone and writes nothing more.
"""

from __future__ import annotations

import socket

from headrace_core.db import queries
from headrace_core.db.pool import Database

_SQL = queries.load("headrace_core.tasks", "sql/deaths.sql")


def worker_name(pid: int) -> str:
    """A process of this machine as consumers call themselves: host and process id."""
    return f"{socket.gethostname()}/{pid}"


async def report_death(db: Database, worker: str, *, timeout: float = 2.0) -> int:
    """Note that the process `worker` has ended; how many consumers that were: 0 if it had left in good order.

    Raises:
        DatabaseUnavailable: nothing is lost, the leases run out.
    """
    return await db.execute(_SQL["report_death"], {"worker": worker}, timeout=timeout)
