"""One unit, from its claim to its acknowledgement: run, decide, record, acknowledge, each on its own."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import get_args
from uuid import UUID

from consumer.attempt import GIVE_UP_SECONDS, Attempt, Cause, ended_by
from consumer.execution.executions import Executions
from consumer.intake.limits import Slots
from consumer.lease import LeaseKeeper
from consumer.registry import Registry
from consumer.reporting import Reporter
from consumer.settling import Settler
from consumer.tracing import attempt_trace
from consumer.unit_facts import facts_of
from headrace_core.bus.puller import Message, acknowledge
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.model import ClaimedUnit, Lease, Settled, UnitId
from headrace_core.tasks.outcome import Interrupted, Outcome, Raised, decide
from headrace_core.tasks.parts import PartsTooLarge, merge_input
from headrace_core.telemetry import logs, metrics, tracing
from headrace_core.telemetry.subject import about

MAX_STUCK = 8
"""Handlers that would not end, at which the consumer drains and exits."""

# Looking a counter up by its label costs more than counting.
_LOST = metrics.attempts_total.labels("lost")
_ENDED = {kind: metrics.attempts_total.labels(kind.__name__.lower()) for kind in get_args(Outcome)}

log = logs.get(__name__)


class TooManyStuckHandlers(Exception):
    """Threads cannot be killed; only a new process frees their places."""

    has_no_data = True
    """Its text is ours alone, so the log may show it."""


class Units:
    """Everything that runs in this process. Belongs to one event loop."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        queues: Mapping[str, QueueSettings],
        executions: Mapping[str, Executions],
        leases: LeaseKeeper,
        reporter: Reporter,
        settler: Settler,
    ) -> None:
        self._database = database
        self._registry = registry
        self._queues = queues
        self._executions = executions
        self._leases = leases
        self._reporter = reporter
        self._settler = settler
        self._attempts: dict[UnitId, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._draining = False
        self._stuck = 0
        self._too_many_stuck = asyncio.Event()

    # -- what is running -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Attempts that have not been settled yet."""
        return len(self._attempts)

    @property
    def unsettled(self) -> int:
        """Settlements on their way."""
        return self._settler.pending

    def messages(self) -> list[Message]:
        """The messages of everything that runs: they must not be delivered again."""
        return [attempt.message for attempt in self._attempts.values() if attempt.message is not None]

    async def watch_stuck(self) -> None:
        """Raise TooManyStuckHandlers when that is so. A background task whose failure ends the process."""
        await self._too_many_stuck.wait()
        raise TooManyStuckHandlers(
            f"{self._stuck} handlers have not ended after their timeout and keep their slots; the consumer restarts"
        )

    # -- ending from outside -------------------------------------------------------------------------------------------

    def lost(self, leases: Iterable[Lease]) -> None:
        """End the handlers of leases that are gone; what is being settled finds out by itself."""
        for lease in leases:
            attempt = self._attempts.get(lease.unit_id)
            if attempt is not None and attempt.unit.lease == lease and not attempt.settling:
                log.info("lease lost", action="lease.lost", **facts_of(attempt.unit), **attempt.log_fields)
                attempt.end(Cause.FENCED)

    def cancelled(self, task_ids: Iterable[UUID]) -> None:
        """End the handlers of tasks that were cancelled."""
        wanted = set(task_ids)
        for unit_id, attempt in list(self._attempts.items()):
            if unit_id.task_id in wanted and not attempt.settling:
                attempt.end(Cause.CANCELLED)

    def ask_all(self) -> None:
        """Tell every handler that the consumer is stopping. What has not begun, now or later, goes back at once."""
        self._draining = True
        for attempt in list(self._attempts.values()):
            _ask(attempt)

    def end_all(self, grace: float) -> None:
        """Interrupt every handler; those that have not ended after `grace` seconds are given up."""
        for attempt in list(self._attempts.values()):
            if not attempt.settling:
                attempt.end(Cause.DRAINING, grace)

    async def wait_idle(self, within: float) -> bool:
        """Wait until nothing runs and everything is settled, at most `within` seconds."""
        try:
            async with asyncio.timeout(max(within, 0)):
                while self._attempts:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def abandon(self) -> None:
        """Stop without settling: the leases run out and another consumer takes over."""
        for attempt in self._attempts.values():
            attempt.abandoned = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)

    # -- one unit ------------------------------------------------------------------------------------------------------

    def start(self, unit: ClaimedUnit, message: Message | None, slots: Slots) -> None:
        """Run a claimed unit in the background; its slot comes back when its handler has ended."""
        attempt = Attempt(unit, self._registry.handlers[unit.kind], message)
        attempt.on_given_up = functools.partial(self._give_up, attempt)
        if tracing.spans is not None:
            attempt.trace = attempt_trace(unit, "postgres" if message is None else "broker")
        self._attempts[unit.lease.unit_id] = attempt
        self._leases.hold(unit)
        if self._draining:
            _ask(attempt)
        self._spawn(attempt, self._live(attempt, slots))

    async def _live(self, attempt: Attempt, slots: Slots) -> None:
        about(functools.partial(facts_of, attempt.unit))
        try:
            outcome = await self._run(attempt)
        finally:
            self._free(attempt, slots)
        if not attempt.given_up:
            await self._conclude(attempt, outcome)

    def _give_up(self, attempt: Attempt) -> None:
        """Its handler, which runs in the attempt's task, would not end: settle without it, in a task of its own."""
        self._note_stuck(attempt)
        self._spawn(attempt, self._conclude(attempt, ended_by(attempt)))

    def _spawn(self, attempt: Attempt, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(
            work, name="unit", context=None if attempt.trace is None else attempt.trace.context
        )
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._ended, attempt))

    async def _conclude(self, attempt: Attempt, outcome: Outcome | None) -> None:
        if attempt.trace is not None:
            attempt.trace.ended(outcome)
        if outcome is None:
            _LOST.inc()
            self._reporter.forget(attempt.unit.lease)
            self._forget([attempt])
            return
        attempt.ended_at = time.monotonic()
        _ENDED[type(outcome)].inc()
        attempt.outcome = type(outcome).__name__.lower()
        await self._record(attempt, outcome)

    async def settled(self, answers: Sequence[tuple[Attempt, Settled]]) -> None:
        """A batch of settlements is committed.

        Acknowledged is what was applied. Not after a fenced settlement: the message may be another's by now (rule 5).
        """
        self._forget([attempt for attempt, _ in answers])
        done = [attempt.message for attempt, answer in answers if answer.applied and attempt.message is not None]
        await acknowledge(done)

    async def _run(self, attempt: Attempt) -> Outcome | None:
        try:
            if attempt.unit.type == "MERGE":
                await self._fetch_parts(attempt)
            return await self._executions[attempt.unit.queue].run(attempt)
        except DatabaseUnavailable as error:
            return Interrupted(error.message)
        except PartsTooLarge as error:
            return Raised(type(error).__name__, str(error), retryable=False)
        except Exception as error:
            # A defect of ours, not of the handler, whose exceptions are outcomes. It must not loop without an end.
            log.exception("an attempt failed outside its handler", action="unit.defect")
            return Raised(type(error).__name__, f"inside the consumer: {error}")

    async def _fetch_parts(self, attempt: Attempt) -> None:
        payload, attempt.parts = await merge_input(self._database, attempt.unit.lease.unit_id.task_id)
        attempt.unit = attempt.unit._replace(payload=payload)

    async def _record(self, attempt: Attempt, outcome: Outcome) -> None:
        attempt.settling = True
        await self._reporter.flush(attempt.unit.lease)
        backoff = self._queues[attempt.unit.queue].backoff
        jitter = random.uniform(-1.0, 1.0)  # noqa: S311 - it spreads load, it guards nothing
        self._settler.settle(attempt, decide(attempt.unit, outcome, backoff, jitter))

    def _free(self, attempt: Attempt, slots: Slots) -> None:
        """Give the slot back, or leave it with a handler that would not end until it does."""
        if attempt.given_up:
            self._unstick(slots)
        elif attempt.lingering is None or attempt.lingering.done():
            slots.release()
        else:
            self._note_stuck(attempt)
            attempt.lingering.add_done_callback(functools.partial(self._unstick, slots))

    def _note_stuck(self, attempt: Attempt) -> None:
        self._stuck += 1
        log.error("a handler does not end", action="unit.stuck", **facts_of(attempt.unit), **attempt.log_fields)
        if self._stuck >= MAX_STUCK:
            self._too_many_stuck.set()

    def _unstick(self, slots: Slots, _future: object = None) -> None:
        self._stuck -= 1
        slots.release()

    def _ended(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            facts = facts_of(attempt.unit) | attempt.log_fields
            log.error("a unit was not settled; its lease runs out", action="unit.failed", exc_info=error, **facts)
        if task.cancelled() or error is not None:
            self._forget([attempt])

    def _forget(self, attempts: Sequence[Attempt]) -> None:
        """They are nothing of ours any more."""
        self._leases.release(attempt.unit.lease for attempt in attempts)
        for attempt in attempts:
            if self._attempts.get(attempt.unit.lease.unit_id) is attempt:
                del self._attempts[attempt.unit.lease.unit_id]
            if attempt.trace is not None:
                attempt.trace.close()
        self._changed.set()


def _ask(attempt: Attempt) -> None:
    if attempt.begun:
        attempt.ask()
    else:
        attempt.end(Cause.DRAINING, GIVE_UP_SECONDS)
