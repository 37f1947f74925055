"""A clean stop (promise G9): nothing new, finish or hand back what runs within the grace period, flush."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from consumer.announcing import Announcer
from consumer.attempt import GIVE_UP_SECONDS
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
    intakes: Sequence[QueueIntake],
    units: Units,
    announcer: Announcer,
    presence: Presence,
    *,
    grace: float,
    finish: float,
) -> None:
    """Drain within `grace` seconds; a handler has `finish` of them. What does not end in time is left to a takeover.

    Each unit is settled or handed back by itself, as soon as its handler has ended: none waits for another.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + grace
    units.ask_all()
    log.info("draining", action="drain.started", running=units.running, grace=grace)
    # Beside the handlers' end, not before it: with Postgres away each of these takes its whole limit.
    quiet = asyncio.gather(presence.draining(), *(intake.stop(min(INTAKE_SECONDS, grace)) for intake in intakes))
    try:
        if not await units.wait_idle(finish_seconds(finish, grace)):
            log.info("interrupting what still runs", action="drain.interrupting", running=units.running)
            units.end_all(GIVE_UP_SECONDS)
        await quiet
    finally:
        quiet.cancel()
    if not await units.wait_idle(end - clock() - _margin(grace) / 6):
        log.warning("not everything was handed back", action="drain.incomplete", running=units.running)
    await announcer.flush(max(end - clock(), 0.5))
    log.info("drained", action="drain.ended", running=units.running)


def finish_seconds(finish: float, grace: float) -> float:
    """How long handlers may take to end by themselves: what is set, or what the grace period leaves of it."""
    return max(min(finish, grace - _margin(grace)), 0.0)


def _margin(grace: float) -> float:
    return min(MARGIN_SECONDS, grace * MARGIN_SHARE)
