"""Deliveries that start nothing: they are acknowledged one claim after the other, and nobody waits behind them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from headrace_core.tasks import queues
from tests.fixtures.consumers import ConsumerRig

PURGED = 1500
"""Many times what a consumer asks for at once."""


async def test_what_was_purged_holds_up_nothing_behind_it(rig: ConsumerRig) -> None:
    await rig.stop(await rig.consumer())  # the streams are there, and nobody pulls
    await rig.submit_many("double", [{"n": 1}] * PURGED)
    moment = datetime.now(UTC) + timedelta(seconds=1)
    while await queues.purge(rig.db, "default", moment):
        continue
    await rig.consumer()
    behind = await rig.submit("double", {"n": 4})
    async with asyncio.timeout(4):  # and not by the look for what nobody delivers, which comes after 5 s
        assert (await rig.result(behind))["doubled"] == 8
