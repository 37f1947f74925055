"""Watching that survives its connection: each event once, in order, whatever breaks in between.

The server resumes after any sequence; this module remembers the sequences, connects again and drops what it has
delivered before. A hole in the sequence counts as a broken connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum

import grpc

from headrace.backoff import Backoff
from headrace.errors import HeadraceError, ServerLimitError, UnavailableError
from headrace.v1 import event_pb2, task_pb2

TERMINAL = frozenset(
    {
        task_pb2.TASK_STATE_COMPLETED,
        task_pb2.TASK_STATE_FAILED,
        task_pb2.TASK_STATE_CANCELLED,
        task_pb2.TASK_STATE_EXPIRED,
    }
)
# A watch by label may run for months: of the tasks that ended it remembers this many, against late repeats.
REMEMBERED_ENDS = 10_000
# What the server takes of them at once.
MOST_RESUMED = 10_000
# How far before the newest event seen an end may lie that was committed after it: an event's time is the start of its
# transaction.
COMMIT_SECONDS = 30
NANOSECONDS = 1_000_000_000
RECONNECTS = Backoff(initial=0.1, maximum=5.0)
# How a broken connection looks when gRPC, and not the server, gives the status.
BROKEN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class Verdict(Enum):
    """What to do with an event."""

    DELIVER = "deliver"
    REPEATED = "repeated"
    HOLE = "hole"


@dataclass(slots=True)
class Position:
    """How far one task has been delivered."""

    sequence: int | None = None
    awaits_snapshot: bool = False
    """A gap has been delivered and its snapshot not yet."""
    ended: bool = False

    def judge(self, event: event_pb2.TaskEvent) -> Verdict:
        """Decide about `event` of this task, and move on if it is to be delivered."""
        if not self._is_new(event):
            return Verdict.REPEATED
        is_jump = event.WhichOneof("event") in {"snapshot", "gap"}
        if self.sequence is not None and event.sequence != self.sequence + 1 and not is_jump:
            return Verdict.HOLE
        self.sequence = max(event.sequence, self.sequence or 0)
        self.awaits_snapshot = event.HasField("gap")
        self.ended = is_terminal(event)
        return Verdict.DELIVER

    def _is_new(self, event: event_pb2.TaskEvent) -> bool:
        if self.sequence is None or event.sequence > self.sequence:
            return True
        return self.awaits_snapshot and event.HasField("snapshot")


class Positions:
    """How far each task of a watch has been delivered."""

    def __init__(self, after: Mapping[str, int] | None = None, ended_since: int = 0) -> None:
        """`after`: task id → the last sequence that the caller has seen. `ended_since` as the property below."""
        self._of: dict[str, Position] = {task: Position(sequence) for task, sequence in (after or {}).items()}
        self._ended: dict[str, int] = {}
        self._since = ended_since
        self._newest = 0

    def judge(self, event: event_pb2.TaskEvent) -> Verdict:
        """Decide about `event`, and move on if it is to be delivered."""
        position = self._of.setdefault(event.task_id, Position())
        verdict = position.judge(event)
        if verdict is Verdict.DELIVER:
            self._ended.pop(event.task_id, None)
            self.note_time(event)
            if position.ended:
                self._ended[event.task_id] = event.time.ToNanoseconds()
        return verdict

    def note_time(self, event: event_pb2.TaskEvent) -> None:
        """The server has come to the time of `event`."""
        self._newest = max(self._newest, event.time.ToNanoseconds())

    @property
    def ended_since(self) -> int:
        """From when on ends may be unknown here: nanoseconds since 1970 by the server's clock; 0 before any event."""
        return max(self._newest - COMMIT_SECONDS * NANOSECONDS, self._since)

    def to_follow(self) -> dict[str, int]:
        """As `to_resume`, for a watch by filter: of the tasks that have ended only those that would be shown again."""
        since = self.ended_since
        resumed = self.to_resume()
        running = {task: sequence for task, sequence in resumed.items() if task not in self._ended}
        late = {task: resumed[task] for task, at in self._ended.items() if at >= since and task in resumed}
        room = max(MOST_RESUMED - len(running), 0)
        return running | dict(list(late.items())[len(late) - min(room, len(late)) :])

    def to_resume(self) -> dict[str, int]:
        """Return task id → sequence for the next connection.

        A task whose gap came without its snapshot is left out: it begins with a snapshot again.
        """
        return {
            task: position.sequence
            for task, position in self._of.items()
            if position.sequence is not None and not position.awaits_snapshot
        }

    def forget_ended(self, keep: int) -> None:
        """Forget the tasks that ended longest ago, all but `keep` of them."""
        while len(self._ended) > keep:
            task = next(iter(self._ended))
            del self._ended[task]
            del self._of[task]

    def all_ended(self) -> bool:
        """Whether every task that was heard of has ended."""
        return all(position.ended for position in self._of.values())


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a watch waits, in seconds, before it gives up: for the first connection, and for a later one."""

    first: float
    later: float


@dataclass(frozen=True, slots=True)
class Source:
    """What is watched. `listen` opens a stream that resumes where the positions say; `endless` ends never with OK."""

    listen: Callable[[Positions], AsyncGenerator[event_pb2.TaskEvent]]
    endless: bool = False


class Watch:
    """One watch over all of its connections."""

    def __init__(self, source: Source, positions: Positions, patience: Patience) -> None:
        self._source = source
        self._positions = positions
        self._patience = patience
        self._limit = patience.first
        self._failures = 0
        self._down_since: float | None = None
        self._is_resuming = False

    async def events(self, *, heartbeats: bool = False) -> AsyncGenerator[event_pb2.TaskEvent]:
        """Yield events until the server says that there are no more. Raises HeadraceError."""
        while True:
            heard = False
            try:
                async with aclosing(self._connection()) as events:
                    async for event in events:
                        if event.HasField("heartbeat"):
                            if heartbeats:
                                yield event
                        else:
                            heard = True
                            yield event
                if self._is_over(heard):
                    return
                broken: HeadraceError = UnavailableError("the server ended the watch before the task did")
            except HeadraceError as error:
                if not self._can_resume(error):
                    raise
                broken = error
            await self._pause(broken)

    async def _connection(self) -> AsyncGenerator[event_pb2.TaskEvent]:
        """Yield what is new on one connection."""
        async with aclosing(self._source.listen(self._positions)) as stream:
            async for event in stream:
                if event.HasField("heartbeat"):
                    self._note_life()
                    self._positions.note_time(event)
                    yield event
                    continue
                verdict = self._positions.judge(event)
                if verdict is Verdict.HOLE:
                    raise UnavailableError(f"events before {event.sequence} of task {event.task_id} are missing")
                if verdict is Verdict.DELIVER:
                    self._note_life()
                    yield event
                if self._source.endless:
                    self._positions.forget_ended(keep=REMEMBERED_ENDS)

    def _note_life(self) -> None:
        self._failures = 0
        self._down_since = None
        self._is_resuming = True
        self._limit = self._patience.later

    def _is_over(self, heard: bool) -> bool:
        # An OK that follows no new event confirms that there is nothing left, also where the caller had it all before.
        return not self._source.endless and (self._positions.all_ended() or not heard)

    def _can_resume(self, error: HeadraceError) -> bool:
        if isinstance(error, ServerLimitError):
            return self._is_resuming
        return isinstance(error, UnavailableError) or (error.code in BROKEN and not error.reason)

    async def _pause(self, broken: HeadraceError) -> None:
        now = asyncio.get_running_loop().time()
        self._down_since = self._down_since or now
        pause = RECONNECTS.delay(self._failures, retry_after=broken.retry_after)
        if now + pause - self._down_since > self._limit:
            raise broken
        self._failures += 1
        await asyncio.sleep(pause)


def is_terminal(event: event_pb2.TaskEvent) -> bool:
    """Whether `event` shows its task ended (until a redrive)."""
    if event.HasField("snapshot"):
        return event.snapshot.state in TERMINAL
    return event.HasField("state_change") and event.state_change.terminal
