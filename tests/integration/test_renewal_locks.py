"""Renewals wait for nobody's lock: not for a settlement that locks in another order, not for one that hangs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from headrace_core.db.pool import Database
from headrace_core.tasks.renew import renew
from tests.factories import a_holder, claimed, row_of, submitted


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def test_a_row_that_somebody_is_writing_delays_no_renewal(db: Database, database_url: str) -> None:
    busy, free = await submitted(db), await submitted(db)
    holder = a_holder()
    leases = [(await claimed(db, holder, task.id)).lease for task in (busy, free)]
    before = (await row_of(db, free.id))["renewal"]
    async with await psycopg.AsyncConnection.connect(database_url) as writer:
        await writer.execute("select 1 from headrace_core.units where task_id = %s for update", (busy.id,))
        assert await renew(db, leases, timeout=2.0) == {lease.unit_id for lease in leases}
    assert (await row_of(db, free.id))["renewal"] == before + 1
