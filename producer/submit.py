"""Group commit: concurrent submits share one transaction, which is where the rate comes from.

The batch is natural: while commits are under way the next one gathers, so a lone task waits for nobody and
a crowd fills batches. A commit of unknown outcome is repeated with the same ids, which the store answers
by reading back.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from headrace_core.db.errors import DataRejected
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable, InvalidFields, ServerLimit, Violation
from headrace_core.runtime.pace import Pace
from headrace_core.tasks.model import NewTask, Submitted
from headrace_core.tasks.submit import submit
from headrace_core.telemetry import logs, metrics

MAX_BATCH = 500
# One statement carries the payloads of a batch: 500 of 1 MiB would be half a gigabyte.
MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_COMMITS = 2
# How many must wait for a second commit beside the first: two nearly empty ones cost twice the time.
WORTH_A_COMMIT = 100
MAX_WAITING = 5000
MAX_WAITING_BYTES = 128 * 1024 * 1024
# Whoever would wait for more than this share of its time is told so at once, and not when the time is over.
LONGEST_WAIT = 0.5
# How much the latest commit counts in the estimate of how long one takes.
LATEST = 0.3
COMMIT_SECONDS = 5.0
REPEAT_SECONDS = 0.1
RETRY_AFTER = 1.0

Answer = Submitted | InvalidFields
_log = logs.get("headrace.producer.submit")


class _Call:
    """The tasks of one call, which may go with several commits, and the caller's side of them."""

    __slots__ = ("_missing", "answers", "done", "taken", "tasks")

    def __init__(self, tasks: Sequence[NewTask]) -> None:
        self.tasks = tasks
        self.taken = 0
        """How many of them have gone with a commit."""
        self.answers: list[Answer | None] = [None] * len(tasks)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has a result once every answer is there; cancelled when the caller has gone."""
        self._missing = len(tasks)

    def resolve(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        self._missing -= 1
        if not self._missing and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


_Place = tuple[_Call, int]
"""A task within its call."""


class GroupCommit:
    """Commits tasks in shared transactions. Owns its commits; `close` waits for them.

    `on_committed` is called after each commit with what it accepted anew; it must not block or raise.
    """

    def __init__(self, db: Database, on_committed: Callable[[list[Submitted]], None]) -> None:
        self._db = db
        self._on_committed = on_committed
        self._calls: deque[_Call] = deque()
        self._waiting = 0
        self._waiting_bytes = 0
        self._commits: set[asyncio.Task[None]] = set()
        self._pace = _Pace()
        self._gathering = Pace()

    async def submit(self, tasks: Sequence[NewTask], *, within: float) -> list[Answer]:
        """Commit `tasks`, one answer each, in order. An InvalidFields among them: Postgres refused that
        row alone.

        Raises:
            DatabaseUnavailable: no commit within `within` seconds; the outcome is unknown.
            ServerLimit: too many submits are waiting already; none of these was taken.
        """
        self._admit(tasks, within)
        call = _Call(tasks)
        self._calls.append(call)
        self._waiting += len(tasks)
        self._waiting_bytes += _bytes_of(tasks)
        self._start_commits()
        return await _answers(call, within)

    async def close(self) -> None:
        """Wait for the commits that are under way; each ends within COMMIT_SECONDS."""
        while self._commits:
            await asyncio.wait(set(self._commits))

    def _admit(self, tasks: Sequence[NewTask], within: float) -> None:
        """Refuse what there is no room for, and what would not be committed in time. Raises ServerLimit."""
        waiting, size = self._waiting, self._waiting_bytes + _bytes_of(tasks)
        if waiting + len(tasks) > MAX_WAITING:
            raise _full(f"{waiting} submits are waiting for Postgres; at most {MAX_WAITING} may", MAX_WAITING)
        if size > MAX_WAITING_BYTES:
            said = f"{self._waiting_bytes} bytes of payload are waiting for Postgres; at most {MAX_WAITING_BYTES} may"
            raise _full(said, MAX_WAITING_BYTES)
        # What the next commits take at once is worth a try, also while Postgres is silent.
        if waiting < MAX_BATCH:
            return
        seconds = self._pace.seconds * (1 + waiting / (MAX_BATCH * MAX_COMMITS))
        if seconds > within * LONGEST_WAIT:
            said = f"{waiting} submits are waiting for Postgres, which takes {seconds:.1f} s for them at its pace"
            raise _full(said, MAX_WAITING, retry_after=seconds)

    def _start_commits(self) -> None:
        if not self._commits or (len(self._commits) < MAX_COMMITS and self._waiting >= WORTH_A_COMMIT):
            # In no caller's context: it serves many, and its lines would carry the trace of the first.
            commit = asyncio.get_running_loop().create_task(
                self._commit_while_waiting(), name="group-commit", context=contextvars.Context()
            )
            self._commits.add(commit)

    async def _commit_while_waiting(self) -> None:
        try:
            while self._calls:
                await self._gathering.gather()
                if batch := self._next_batch():
                    await self._commit_or_fail(batch)
        finally:
            # Without an await since nothing was waiting: a call that comes after this starts a commit of its own. A
            # callback of the task would run later, and a call in between would wait for a commit that has ended.
            if task := asyncio.current_task():
                self._commits.discard(task)

    async def _commit_or_fail(self, batch: list[_Place]) -> None:
        try:
            await self._commit(batch)
        except Exception as error:  # noqa: BLE001 - whatever it was, its callers must hear of it
            if not isinstance(error, DatabaseUnavailable):
                # It may have come after the answers, when nobody hears of it any more.
                _log.error("a commit broke", action="commit_broken", tasks=len(batch), exc_info=error)
            for call, _ in batch:
                call.fail(error)

    def _next_batch(self) -> list[_Place]:
        """Up to MAX_BATCH tasks; those whose callers have gone are left out, nobody would learn of them."""
        batch: list[_Place] = []
        size = 0
        while self._calls and len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            call = self._calls[0]
            task = call.tasks[call.taken]
            self._waiting -= 1
            self._waiting_bytes -= len(task.payload)
            if not call.done.done():
                batch.append((call, call.taken))
                size += len(task.payload)
            call.taken += 1
            if call.taken == len(call.tasks):
                self._calls.popleft()
        self._gathering.took(len(batch))
        return batch

    async def _commit(self, batch: list[_Place]) -> None:
        try:
            with self._pace.measured():
                accepted = await self._commit_until_known(batch)
        except DataRejected as error:
            await self._split(batch, error)
            return
        metrics.submit_batch_size.observe(len(batch))
        # The callers first: what is announced and published can wait until their answers are on the wire.
        for (call, index), submitted in zip(batch, accepted, strict=True):
            call.resolve(index, submitted)
        self._on_committed([submitted for submitted in accepted if submitted.created])

    async def _commit_until_known(self, batch: list[_Place]) -> list[Submitted]:
        tasks = [call.tasks[index] for call, index in batch]
        clock = asyncio.get_running_loop().time
        deadline = clock() + COMMIT_SECONDS
        while True:
            try:
                return await submit(self._db, tasks, timeout=max(deadline - clock(), REPEAT_SECONDS))
            except DatabaseUnavailable as error:
                if clock() + REPEAT_SECONDS >= deadline:
                    raise _unknown_outcome() from error
                _log.warning("a commit is repeated", action="commit_repeated", tasks=len(tasks))
            await asyncio.sleep(REPEAT_SECONDS)

    async def _split(self, batch: list[_Place], error: DataRejected) -> None:
        """Postgres refused the data of one of them: halve until it stands alone, so that it fails no
        neighbour.
        """
        if len(batch) == 1:
            _log.error("Postgres refused a checked task", action="submit_rejected", sqlstate=error.sqlstate)
            violation = Violation("payload_json", f"Postgres refuses the data (SQLSTATE {error.sqlstate})")
            call, index = batch[0]
            call.resolve(index, InvalidFields.of([violation]))
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            await self._commit(half)


class _Pace:
    """How long a commit takes, as it has been lately; one that has been under way for longer says so itself."""

    def __init__(self) -> None:
        self._usual = 0.0
        self._started: dict[object, float] = {}

    @property
    def seconds(self) -> float:
        """The estimate."""
        now = time.monotonic()
        return max([self._usual, *(now - started for started in self._started.values())])

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around each commit."""
        commit, started = object(), time.monotonic()
        self._started[commit] = started
        try:
            yield
        finally:
            del self._started[commit]
            self._usual += LATEST * (time.monotonic() - started - self._usual)


async def _answers(call: _Call, within: float) -> list[Answer]:
    """Whoever stops waiting cancels the call: what is not committed yet is left out."""
    try:
        async with asyncio.timeout(within):
            await call.done
    except TimeoutError as error:
        raise _unknown_outcome() from error
    return [answer for answer in call.answers if answer is not None]


def _bytes_of(tasks: Sequence[NewTask]) -> int:
    return sum(len(task.payload) for task in tasks)


def _full(said: str, limit: int, retry_after: float = RETRY_AFTER) -> ServerLimit:
    return ServerLimit(said, retry_after=max(retry_after, RETRY_AFTER), metadata={"limit": str(limit)})


def _unknown_outcome() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "Postgres did not confirm the commit in time; whether the task was accepted is unknown:"
        " repeat the identical request with its idempotency key",
        retry_after=RETRY_AFTER,
    )
