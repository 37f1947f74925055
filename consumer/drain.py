"""A clean stop (promise G9): nothing new, finish or hand back what runs within the grace period, flush."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from consumer.announcing import Announcer
from consumer.intake.queue import QueueIntake
from consumer.presence import Presence
from consumer.unit import Units
from headrace_core.telemetry import logs

MARGIN_SECONDS = 3.0
"""Kept at the end of the grace period for interrupting, handing back and publishing."""
MARGIN_SHARE = 0.5
INTAKE_SECONDS = 5.0

log = logs.get(__name__)


async def drain(
    intakes: Iterable[QueueIntake], units: Units, announcer: Announcer, presence: Presence, grace: float
) -> None:
    """Drain within `grace` seconds. What does not end in time is left to a takeover."""
    clock = asyncio.get_running_loop().time
    end = clock() + grace
    margin = min(MARGIN_SECONDS, grace * MARGIN_SHARE)
    # First: whoever sees our leases run out after this takes it for an interruption (rule 9).
    await presence.draining()
    await asyncio.gather(*(intake.stop(min(INTAKE_SECONDS, grace)) for intake in intakes))
    units.ask_all()
    log.info("draining", action="drain.started", running=units.running, grace=grace)
    if not await units.wait_idle(end - margin - clock()):
        log.info("interrupting what still runs", action="drain.interrupting", running=units.running)
        units.end_all(margin / 2)
        if not await units.wait_idle(end - clock() - margin / 6):
            log.warning("not everything was handed back", action="drain.incomplete", running=units.running)
    await announcer.flush(max(end - clock(), 0.5))
    log.info("drained", action="drain.ended", running=units.running)
