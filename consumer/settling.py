"""Settling in batches that adapt: one that is alone goes at once; while a transaction is under way the next gathers."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from consumer.attempt import Attempt
from consumer.tracing import settled
from consumer.unit_facts import facts_of
from headrace_core.db.errors import DataRejected
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.runtime.pace import Pace
from headrace_core.tasks.model import Complete, Fail, Plan, Settled, Settlement, Settlements
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from headrace_core.telemetry import logs, metrics, tracing

MAX_BATCH = 500
# One statement carries the results of a batch: 300 of 1 MiB take longer than it may, and would be tried for ever.
MAX_BATCH_BYTES = 8 * 1024 * 1024
FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 2.0

log = logs.get(__name__)


@dataclass(slots=True)
class _Waiting:
    settlement: Settlement
    attempt: Attempt
    answered: bool = False


class Settler:
    """Settles one batch after the other.

    `on_settled` is told of every commit, before `on_answers` hears for each attempt whether its lease still held: once
    for a batch, because what follows (acknowledgements, leases) costs less for many at once.
    """

    def __init__(
        self,
        database: Database,
        sharded: Sequence[str],
        on_settled: Callable[[Settlements], None],
        on_answers: Callable[[Sequence[tuple[Attempt, Settled]]], Awaitable[None]],
    ) -> None:
        self._database = database
        self._sharded = sharded
        self._on_settled = on_settled
        self._on_answers = on_answers
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._in_flight = 0
        self._pace = Pace()

    @property
    def pending(self) -> int:
        """Settlements that are not committed yet: what the intake limits itself by."""
        return len(self._waiting) + self._in_flight

    def settle(self, attempt: Attempt, settlement: Settlement) -> None:
        """Settle it soon, however long Postgres is away."""
        self._waiting.append(_Waiting(settlement, attempt))
        self._arrived.set()

    async def run(self) -> None:
        """Settle what arrives. A background task; a batch that it fails with is taken up by its next start."""
        while True:
            await self._arrived.wait()
            await self._pace.gather()
            batch = self._next_batch()
            self._pace.took(len(batch))
            self._in_flight = len(batch)
            del self._waiting[: len(batch)]
            if not self._waiting:
                self._arrived.clear()
            try:
                await self._settle_batch(batch)
            except BaseException:
                self._take_back(batch)
                raise
            finally:
                self._in_flight = 0

    def _next_batch(self) -> list[_Waiting]:
        """The first ones, within both bounds; one goes whatever its size."""
        size = 0
        for number, item in enumerate(self._waiting[:MAX_BATCH]):
            size += _bytes_of(item.settlement)
            if number and size > MAX_BATCH_BYTES:
                return self._waiting[:number]
        return self._waiting[:MAX_BATCH]

    def _take_back(self, batch: list[_Waiting]) -> None:
        self._waiting[:0] = [item for item in batch if not item.answered]
        self._arrived.set()

    async def _settle_batch(self, batch: list[_Waiting]) -> None:
        try:
            settlements = await self._persist([item.settlement for item in batch])
        except DataRejected as error:
            await self._settle_apart(batch, error)
            return
        if tracing.spans is not None:
            settlements = settled([(item.attempt.trace, item.settlement) for item in batch], settlements)
        self._on_settled(settlements)
        _count(batch, settlements.answers)
        for item in batch:
            item.answered = True
        answers = zip(batch, settlements.answers, strict=True)
        await self._on_answers([(item.attempt, answer) for item, answer in answers])

    async def _settle_apart(self, batch: list[_Waiting], error: DataRejected) -> None:
        """A row of the batch is bad: halve it until that one stands alone, which then fails for good (rule 11)."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._settle_batch(batch[:middle])
            await self._settle_batch(batch[middle:])
            return
        (item,) = batch
        log.error(
            "a settlement was refused by Postgres",
            action="settle.rejected",
            sqlstate=error.sqlstate,
            **facts_of(item.attempt.unit),
            **item.attempt.log_fields,
        )
        if isinstance(item.settlement, Fail):
            raise error  # nothing of it is the user's: a defect of ours
        item.settlement = refused(item.settlement, error)
        await self._settle_batch(batch)

    async def _persist(self, settlements: Sequence[Settlement]) -> Settlements:
        """Write a batch, again after every outage: one that was committed unknown to us is not applied twice."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                return await settle(self._database, settlements, sharded=self._sharded)
            except DatabaseUnavailable as error:
                log.warning(
                    "settlements not written yet",
                    action="settle.retry",
                    settlements=len(settlements),
                    error=error.message,
                )
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_RETRY_SECONDS)


def _bytes_of(settlement: Settlement) -> int:
    match settlement:
        case Complete(result=result):
            return len(result)
        case Plan(shards=shards):
            return sum(map(len, shards))
        case _:
            return 0


def refused(settlement: Settlement, error: DataRejected) -> Fail:
    """What becomes of a settlement whose data Postgres refuses: no retry of the handler would mend it."""
    return Fail(settlement.lease, "failure", "NON_RETRYABLE", error_json("NON_RETRYABLE", "DataRejected", str(error)))


def _count(batch: Sequence[_Waiting], answers: Sequence[Settled]) -> None:
    metrics.settle_batch_size.observe(len(batch))
    ran: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for item in batch:
        ran[item.attempt.unit.queue, item.attempt.outcome].append(item.attempt.ended_at - item.attempt.started_at)
    for labels, seconds in ran.items():
        metrics.run_seconds.labels(*labels).observe_many(seconds)
    applied = Counter(
        type(item.settlement).__name__.lower() for item, answer in zip(batch, answers, strict=True) if answer.applied
    )
    for name, number in applied.items():
        metrics.settled_total.labels(name).inc(number)
    metrics.fenced_total.inc(len(answers) - applied.total())
