"""The relay: brings to the stream what is committed, ends what is overdue, takes over what a dead consumer left.

Each chore is a background task of its own that runs in every replica at once: they share the work through row locks
that skip what another holds, and every statement is conditional on the state that it changes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.runtime.supervisor import Supervisor
from headrace_core.tasks.cancel import expire
from headrace_core.tasks.dead_letters import trace_contexts
from headrace_core.tasks.model import Submitted, TaskState, Wake
from headrace_core.tasks.publication import of_submitted, take_unpublished
from headrace_core.tasks.reconciliation import create_missing_merges
from headrace_core.tasks.takeover import read_leases, take_over
from headrace_core.telemetry import logs, metrics, tracing
from producer.announcing import Announcer
from producer.dead_letter_sync import DeadLetterSync
from producer.dead_messages import DeadMessages
from producer.known_kinds import KnownKinds
from producer.lease_watch import ROUND_SECONDS, LeaseWatch
from producer.publishing import TaskPublisher
from producer.queue_loads import QueueLoads
from producer.reconciler import RECONCILE_SECONDS, Reconciler
from producer.redrive import Redrive
from producer.tracing import taken_over

SWEEP_SECONDS = 0.25
# Where nothing was accepted or found for so long, the frequent chores run half as often.
QUIET_AFTER_SECONDS = 10.0
SWEEP_BATCH = 1000
# Long enough that a publication which is under way is rarely repeated, and that most are claimed and need no mark. One
# that was lost with its producer waits this long, or as long as idle consumers do before they look by themselves.
GRACE_SECONDS = 5.0
DEADLINE_SECONDS = 1.0
DEADLINE_BATCH = 500
DEAD_LETTER_SECONDS = 1.0
TURN_SECONDS = 0.5
MERGE_SECONDS = 10.0
MERGE_BATCH = 100
TAKEOVER_BATCH = 200

T = TypeVar("T")

_log = logs.get("headrace.producer.relay")


class Relay:
    """Owns the chores; `start` hands them to the supervisor. `bus` is None with `broker = "none"`."""

    def __init__(
        self,
        db: Database,
        bus: Bus | None,
        names: StreamNames,
        publisher: TaskPublisher,
        announcer: Announcer,
        kinds: KnownKinds,
        loads: QueueLoads,
        redrive: Redrive,
    ) -> None:
        self._db = db
        self._bus = bus
        self._names = names
        self._publisher = publisher
        self._announcer = announcer
        self._kinds = kinds
        self._loads = loads
        self._redrive = redrive
        self._nudged = asyncio.Event()
        self._quiet_at = 0.0
        self._watch = LeaseWatch()
        self._letters = DeadLetterSync(db, bus, names) if bus is not None else None

    def start(self, supervisor: Supervisor) -> None:
        """Begin every chore."""
        supervisor.spawn("relay-publish", self._publisher.publish_forever)
        supervisor.spawn("relay-mark", self._publisher.mark_forever)
        supervisor.spawn("relay-announce", self._announcer.announce_forever)
        supervisor.spawn("relay-sweep", self._sweep_forever)
        supervisor.spawn("relay-deadlines", _every(lambda: DEADLINE_SECONDS, self.expire_overdue))
        supervisor.spawn("relay-leases", self._watch_leases_forever)
        supervisor.spawn("relay-merges", _every(lambda: MERGE_SECONDS, self.repair_merges))
        supervisor.spawn("relay-redrive", _every(lambda: self._pause(TURN_SECONDS), self._redrive.redrive_due))
        if self._bus is not None and self._letters is not None:
            supervisor.spawn("relay-dead-letters", _every(lambda: self._pause(DEAD_LETTER_SECONDS), self._letters.sync))
            self._start_reconciler(self._bus, supervisor)
            self._bus.on_state_change(lambda connected: self.nudge() if connected else None)

    def _start_reconciler(self, bus: Bus, supervisor: Supervisor) -> None:
        identity = self._publisher.identity
        assert identity is not None
        dead = DeadMessages(self._db, bus, self._names, self._publisher, identity)
        reconciler = Reconciler(self._db, bus, self._names, self._publisher, self._loads, dead, identity)
        supervisor.spawn("relay-advisories", dead.follow_advisories)
        supervisor.spawn("relay-reconcile", _every(lambda: self._pause(RECONCILE_SECONDS), reconciler.reconcile))

    def nudge(self) -> None:
        """Sweep at once: the broker is back, a queue goes on."""
        self._nudged.set()

    def committed(self, accepted: Sequence[Submitted]) -> None:
        """After a commit: publish what is due now, tell the watchers. Called by the group commit; never blocks."""
        self._note_activity()
        tasks = [submitted.task for submitted in accepted]
        self._loads.note_accepted(task.queue for task in tasks)
        for (kind, queue), number in Counter((task.kind, task.queue) for task in tasks).items():
            metrics.submitted_total.labels(kind, queue).inc(number)
        self._publisher.offer(
            [
                of_submitted(task, submitted.trace_context)
                for submitted in accepted
                if (task := submitted.task).state is TaskState.PENDING
                and task.due_at <= task.created_at
                and not self._loads.is_paused(task.queue)
            ]
        )
        self._announcer.wake([Wake(task.id, task.sequence) for task in tasks])

    async def sweep(self) -> bool:
        """Offer the publisher what is due and not in the stream; True if there may be more."""
        limit = min(SWEEP_BATCH, self._publisher.room)
        if not self._publisher.ready or not limit:
            return False
        found = await take_unpublished(self._db, limit, GRACE_SECONDS, self._publisher.full())
        self._publisher.offer(found)
        if found:
            self._note_activity()
        return len(found) == limit

    def _pause(self, seconds: float) -> float:
        quiet = asyncio.get_running_loop().time() > self._quiet_at
        return 2 * seconds if quiet else seconds

    def _note_activity(self) -> None:
        self._quiet_at = asyncio.get_running_loop().time() + QUIET_AFTER_SECONDS

    async def expire_overdue(self) -> None:
        """End the tasks whose deadline has passed."""
        while True:
            wakes = await expire(self._db, DEADLINE_BATCH)
            self._announcer.cancelled(wakes)
            if len(wakes) < DEADLINE_BATCH:
                return

    async def watch_leases(self) -> None:
        """One round: read every lease, take over those that nobody has renewed for a whole lease."""
        try:
            leases = await read_leases(self._db)
        except DatabaseUnavailable:
            self._watch.fail()
            raise
        lost = self._watch.see(leases, asyncio.get_running_loop().time(), self._loads.lease)
        for start in range(0, len(lost), TAKEOVER_BATCH):
            batch = lost[start : start + TAKEOVER_BATCH]
            settled = await take_over(self._db, batch, sharded=self._kinds.sharded)
            applied = sum(answer.applied for answer in settled.answers)
            metrics.takeovers_total.inc(applied)
            _log.warning("units taken over", action="takeover", count=applied, seen=len(batch))
            self._publisher.offer(settled.publications)
            self._announcer.wake(settled.wakes)
            if tracing.spans is not None:
                pairs = zip(batch, settled.answers, strict=True)
                tasks = [item.lease.unit_id.task_id for item, answer in pairs if answer.applied]
                taken_over(tracing.spans, await trace_contexts(self._db, tasks))

    async def repair_merges(self) -> None:
        """Create merges that are missing although their shards are done. None ever should be."""
        publications = await create_missing_merges(self._db, MERGE_BATCH)
        if publications:
            tasks = [str(item.unit_id.task_id) for item in publications[:10]]
            _log.error("merges were missing", action="merges_repaired", count=len(publications), tasks=tasks)
            self._publisher.offer(publications)

    async def close(self) -> None:
        """Listen for nothing more. The chores have been ended by their supervisor before."""
        if self._letters is not None:
            await self._letters.close()

    async def _sweep_forever(self) -> None:
        while True:
            more = await _unless_database_is_away(self.sweep) or False
            if more:
                continue
            try:
                async with asyncio.timeout(self._pause(SWEEP_SECONDS)):
                    await self._nudged.wait()
            except TimeoutError:
                continue
            finally:
                self._nudged.clear()

    async def _watch_leases_forever(self) -> None:
        """At a steady pace: a round that takes long is not followed by a pause, so that it does not count as late."""
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            await _unless_database_is_away(self.watch_leases)
            await asyncio.sleep(max(ROUND_SECONDS - (clock() - started), 0.05))


def _every(pause: Callable[[], float], chore: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def repeat() -> None:
        while True:
            await _unless_database_is_away(chore)
            await asyncio.sleep(pause())

    return repeat


async def _unless_database_is_away(chore: Callable[[], Awaitable[T]]) -> T | None:
    """An outage of Postgres is no defect of a chore: it is said once a round, and the next round tries again."""
    try:
        return await chore()
    except DatabaseUnavailable as error:
        _log.warning("a chore waits for Postgres", action="relay_waits", error=error.message)
        await asyncio.sleep(SWEEP_SECONDS)
        return None
