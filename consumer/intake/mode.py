"""How work comes in: through the broker, or, while that is away, straight from Postgres (rule 17).

Both ways end in the same claim, so consumers need not agree. What matters here is to leave neither too early: the
broker is given up after a second, and trusted again only when a message that was published has been delivered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Literal
from uuid import UUID

from headrace_core.bus.broker_status import without_majority
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import LEVELS, Declaration, StreamNames, durable_name
from headrace_core.bus.errors import BusError, StreamMissing
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.topology import apply, consumers
from headrace_core.telemetry import logs, metrics

Mode = Literal["broker", "fallback", "postgres"]
PATIENCE_SECONDS = 1.0
LOOK_SECONDS = 0.5
ANSWER_SECONDS = 1.5
LONGEST_PROBE_SECONDS = 8.0

log = logs.get(__name__)


class ModeSwitch:
    """Which mode is in force, by what was seen. Pure: the clock is an argument, in monotonic seconds."""

    def __init__(self, *, broker: bool) -> None:
        self.mode: Mode = "broker" if broker else "postgres"
        self.healthy = broker
        self._unhealthy_since: float | None = None

    def look(self, now: float, *, healthy: bool) -> None:
        """Note whether the broker is as it should be."""
        self.healthy = healthy
        if healthy:
            self._unhealthy_since = None
        elif self._unhealthy_since is None:
            self._unhealthy_since = now
        self.wait(now)

    def wait(self, now: float) -> None:
        """Note the time: the patience may be at its end."""
        since = now if self._unhealthy_since is None else self._unhealthy_since
        if self.mode == "broker" and now - since >= PATIENCE_SECONDS:
            self.mode = "fallback"

    def delivered(self) -> None:
        """Note a message that has come: the round trip works."""
        if self.mode == "fallback" and self.healthy:
            self.mode = "broker"


class ModeWatch:
    """Looks at the broker, switches, probes. `on_change` is called after each change of the mode.

    `bus` is None with `broker = "none"`. `declaration` is what to apply where the streams are missing; None: nothing,
    an administrator applies it.
    """

    def __init__(
        self,
        bus: Bus | None,
        names: StreamNames,
        queues: Sequence[str],
        holder: UUID,
        declaration: Declaration | None,
        on_change: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._names = names
        self._durables = [durable_name(queue, level) for queue in queues for level in LEVELS]
        self._probe_subject = names.task_subject(f"{queues[0]}.resume")
        self._probe_body = json.dumps({"probe": str(holder)}).encode()
        self._declaration = declaration
        self._on_change = on_change
        self._publisher = Publisher(bus) if bus is not None else None
        self._switch = ModeSwitch(broker=bus is not None)
        self._shown: Mode | None = None
        self._probe_pause = LOOK_SECONDS
        self._probe_at = 0.0
        self.problem = ""

    @property
    def mode(self) -> Mode:
        """The mode in force."""
        return self._switch.mode

    def delivered(self) -> None:
        """Note a delivery. Called for each message; cheap while the broker is trusted."""
        if self._switch.mode == "fallback":
            self._switch.delivered()
            self._show()

    async def run(self) -> None:
        """Look every half second. A background task."""
        self._show()
        while self._bus is not None:
            await self.look(self._bus)
            await self._probe_now_and_then()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, bus: Bus) -> None:
        """Look once. An answer that does not come was missing from the moment of the question."""
        asked_at = _now()
        self.problem = await self._problem(bus)
        self._switch.look(asked_at, healthy=not self.problem)
        self._switch.wait(_now())
        self._show()

    async def close(self) -> None:
        """Stop listening for the answers to probes."""
        if self._publisher is not None:
            await self._publisher.close()

    async def _problem(self, bus: Bus) -> str:
        if not bus.jetstream:
            return bus.problem or "not connected"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await consumers(bus, self._names.tasks)
        except TimeoutError:
            return (
                f"JetStream did not answer within {ANSWER_SECONDS:g} s: its server is frozen or overloaded, or its "
                "cluster has lost the majority; bring its servers back"
            )
        except StreamMissing as error:
            return await self._repair(bus, error.message)
        except BusError as error:
            return error.message
        missing = [name for name in self._durables if name not in found]
        if missing:
            return await self._repair(bus, f"missing consumers: {', '.join(missing)}; run: headrace topology apply")
        return without_majority(found, self._durables)

    async def _repair(self, bus: Bus, problem: str) -> str:
        if self._declaration is None:
            return problem
        try:
            changes = await apply(bus, self._declaration)
        except BusError as error:
            return error.message
        log.info("topology applied", action="topology.applied", changes=changes)
        return ""

    async def _probe_now_and_then(self) -> None:
        """Ever more rarely, so that those that nobody takes do not fill the stream."""
        if self.mode != "fallback" or not self._switch.healthy:
            self._probe_pause, self._probe_at = LOOK_SECONDS, 0.0
        elif _now() >= self._probe_at:
            self._probe_at = _now() + self._probe_pause
            self._probe_pause = min(2 * self._probe_pause, LONGEST_PROBE_SECONDS)
            await self._probe()

    async def _probe(self) -> None:
        """Send a message round: whoever of the consumers gets it knows that the way is open."""
        assert self._publisher is not None
        (result,) = await self._publisher.publish([OutgoingMessage(self._probe_subject, self._probe_body)])
        if not result.accepted:
            log.info("the broker takes no messages yet", action="mode.probe_refused", reason=result.reason)

    def _show(self) -> None:
        if self._shown == self.mode:
            return
        log.info("work comes in", action="mode.changed", mode=self.mode, before=self._shown, problem=self.problem)
        self._shown = self.mode
        metrics.set_mode(self.mode)
        self._on_change()


def _now() -> float:
    return asyncio.get_running_loop().time()
