"""The life of one watch (promise G6): a snapshot or the history, then every later event once, in order, and an end.

A stream never holds more than one page of events: whatever waits, waits in the topics, where it is kept once for all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from headrace.v1.event_pb2 import TaskEvent
from headrace_core.access.identity import ANYONE, Identity
from headrace_core.access.table import READERS
from headrace_core.errors import SequenceBeyondEnd
from headrace_core.tasks.model import TERMINAL, TaskRecord
from headrace_core.tasks.reading import Position, not_found
from headrace_core.telemetry import metrics
from status.discovery import Discovery, Follow
from status.filters import WatchStart
from status.hub import Hub
from status.messages import gap_message, heartbeat_message, snapshot_message
from status.quotas import Place, WatchQuotas
from status.reads import SharedReads
from status.watcher import Track, Watcher

_CHUNK = 500
"""Tasks that a stream begins with at a time: their rows are in memory until their snapshots are sent."""
RETENTION = "retention has removed events after this sequence"
TOO_SLOW = "the watcher took its events too slowly"
_CAUSES = {RETENTION: "retention", TOO_SLOW: "too_slow"}

T = TypeVar("T")


class Watches:
    """Opens watches. One for the process."""

    def __init__(self, hub: Hub, reads: SharedReads, discovery: Discovery, quotas: WatchQuotas | None = None) -> None:
        self._hub = hub
        self._reads = reads
        self._discovery = discovery
        self._quotas = quotas or WatchQuotas({})

    async def events(self, start: WatchStart, identity: Identity = ANYONE) -> AsyncIterator[TaskEvent]:
        """Every event of one stream that `identity` may see. Messages are shared between streams: never change them.

        Raises:
            TaskNotFound, SequenceBeyondEnd: the request names what is not there.
            PermissionDenied, QuotaExceeded: a task's namespace is the caller's, without the role; has its streams open.
            Draining, ServerLimit, DatabaseUnavailable: connect again and resume.
        """
        with self._hub.watcher() as watcher, self._quotas.place() as place:
            watch = _Watch(self._hub, self._reads, watcher, identity, place)
            if start.wanted is None:
                stream = watch.of_tasks(start.task_ids, start.after)
                async for event in stream:
                    yield event
                return
            place.take([start.wanted.namespace] if start.wanted.namespace else start.wanted.within or ())
            async with self._discovery.follow(start.wanted, watcher) as follow:
                async for event in watch.of_filter(follow, start.after, start.ended_since):
                    yield event


class _Watch:
    def __init__(self, hub: Hub, reads: SharedReads, watcher: Watcher, identity: Identity, place: Place) -> None:
        self._identity = identity
        self._place = place
        self._hub = hub
        self._reads = reads
        self._watcher = watcher
        self._follow: Follow | None = None
        self._sent = metrics.watch_events_sent_total

    # -- the two courses ------------------------------------------------------------------------------------------

    async def of_tasks(self, task_ids: Sequence[UUID], after: dict[UUID, int]) -> AsyncIterator[TaskEvent]:
        """Until the last of these tasks has ended."""
        # Within one chunk, reading the rows finds out itself what is not there.
        asked = task_ids if len(task_ids) > _CHUNK else [task_id for task_id in task_ids if task_id in after]
        stands = await self._stands(asked, after)
        for task_id in asked:
            if task_id not in stands:
                raise not_found(task_id)
        for chunk in _chunks(task_ids):
            async for event in self._begin(chunk, after, stands):
                yield event
        while self._watcher.tracks:
            async for event in self._step():
                yield event

    async def of_filter(
        self, follow: Follow, after: dict[UUID, int], ended_since: datetime | None
    ) -> AsyncIterator[TaskEvent]:
        """Until the client leaves. `ended_since`: what came and went while it was away is shown, too."""
        self._follow = follow
        stands = await self._stands(list(after), after)
        # The client knows from when on to ask again, also if it is cut off before the first event.
        yield heartbeat_message()
        # What retention has removed since the client saw it has no more to show.
        ended = [] if ended_since is None else await follow.ended(ended_since)
        task_ids = list(dict.fromkeys([*stands, *ended, *await follow.unfinished()]))
        for chunk in _chunks(task_ids):
            async for event in self._begin(chunk, after, stands):
                yield event
        while True:
            for chunk in _chunks(self._watcher.take_arrived()):
                async for event in self._admit(chunk, follow):
                    yield event
            async for event in self._step():
                yield event

    async def _admit(self, arrived: Sequence[UUID], follow: Follow) -> AsyncIterator[TaskEvent]:
        """Tasks that the filter has just matched: new ones, and ended ones that go on after a redrive."""
        fresh = [task_id for task_id in arrived if task_id not in self._watcher.tracks]
        after = {task_id: sequence for task_id in fresh if (sequence := follow.ended_at(task_id)) is not None}
        stands = await self._reads.positions.get_many(after)
        async for event in self._begin([key for key in fresh if key not in after or key in stands], after, stands):
            yield event

    # -- beginning ------------------------------------------------------------------------------------------------

    async def _stands(self, task_ids: Sequence[UUID], after: dict[UUID, int]) -> dict[UUID, Position]:
        """Where those of the tasks stand that exist for the caller; that a stream cannot resume it learns before its
        first event."""
        found = await self._reads.positions.get_many(task_ids)
        stands = {task_id: stand for task_id, stand in found.items() if self._shows(task_id, stand.namespace)}
        for task_id, sequence in after.items():
            if task_id in stands and sequence > stands[task_id].sequence:
                raise SequenceBeyondEnd(
                    f"task {task_id} has {stands[task_id].sequence} events so far; none is to be seen after {sequence}",
                    metadata={"id": str(task_id), "sequence": str(stands[task_id].sequence)},
                )
        return stands

    async def _begin(
        self, task_ids: Sequence[UUID], after: dict[UUID, int], stands: dict[UUID, Position]
    ) -> AsyncIterator[TaskEvent]:
        """Join these tasks; snapshots of those that do not resume. The histories of the others follow in the steps."""
        tasks = await self._tasks([task_id for task_id in task_ids if task_id not in after])
        for task in tasks:
            self._join(task.id, _position(task), task.sequence)
        for task_id in task_ids:
            if task_id in after:
                self._join(task_id, stands[task_id], after[task_id])
        for task in tasks:
            yield snapshot_message(task)
            self._sent.inc()
            self._watcher.check()

    def _shows(self, task_id: UUID, namespace: str) -> bool:
        """Whether the caller may see the task. Asked for by its id, one that is not to be seen ends the stream."""
        if self._follow is not None:
            return self._identity.may(READERS, namespace)
        self._identity.require(READERS, namespace, not_found(task_id))
        self._place.take([namespace])
        return True

    def _join(self, task_id: UUID, stands: Position, after: int) -> None:
        if after == stands.sequence and stands.state in TERMINAL:
            self._note_end(task_id, after)
        else:
            self._hub.join(self._watcher, task_id, stands, after)

    async def _tasks(self, task_ids: Sequence[UUID]) -> list[TaskRecord]:
        tasks = await self._reads.tasks.get_many(task_ids)
        for task_id in task_ids:
            if task_id not in tasks:
                raise not_found(task_id)
        return [tasks[task_id] for task_id in task_ids if self._shows(task_id, tasks[task_id].namespace)]

    # -- going on -------------------------------------------------------------------------------------------------

    async def _step(self) -> AsyncIterator[TaskEvent]:
        """Whatever there is now, or a heartbeat after a while of nothing."""
        if not await self._watcher.wait(self._hub.limits.heartbeat):
            yield heartbeat_message()
            return
        behind: list[Track] = []
        for track in self._watcher.take_ready():
            events = track.topic.take(track.position)
            if events is None:
                behind.append(track)
                continue
            track.live = True
            for event in self._delivered(track, events):
                yield event
                self._watcher.check()
            self._leave_if_ended(track)
        for tracks in _chunks(behind):
            async for event in self._catch_up(tracks):
                yield event

    def _delivered(self, track: Track, events: Sequence[TaskEvent]) -> Iterator[TaskEvent]:
        for event in events:
            track.position = event.sequence
            self._sent.inc()
            yield event
        self._hub.taken(track.topic)

    async def _catch_up(self, tracks: Sequence[Track]) -> AsyncIterator[TaskEvent]:
        """For tracks whose next events no topic keeps: a page of history, or a gap for those that were live."""
        slow = [track for track in tracks if track.live]
        if slow:
            async for event in self._over_gap(slow, TOO_SLOW):
                yield event
        resuming = [track for track in tracks if not track.live]
        pages = await self._reads.history.get_many([(track.topic.task_id, track.position) for track in resuming])
        torn: list[Track] = []
        for track in resuming:
            page = pages[track.topic.task_id, track.position]
            if not page or page[0].sequence != track.position + 1:
                torn.append(track)
                continue
            for event in self._delivered(track, page[: _dense(page)]):
                yield event
                self._watcher.check()
            self._watcher.mark(track)
        if torn:
            async for event in self._over_gap(torn, RETENTION):
                yield event

    async def _over_gap(self, tracks: Sequence[Track], cause: str) -> AsyncIterator[TaskEvent]:
        """Say that events are missing, and go on from a snapshot."""
        tasks = await self._tasks([track.topic.task_id for track in tracks])
        for track, task in zip(tracks, tasks, strict=True):
            missed_after, track.position, track.live = track.position, task.sequence, True
            metrics.watch_gaps_total.labels(_CAUSES[cause]).inc()
            yield gap_message(task, missed_after, cause)
            yield snapshot_message(task)
            self._sent.inc(2)
            if task.state in TERMINAL:
                self._leave(track)
            else:
                self._hub.hear(track.topic, task.sequence)
                self._watcher.mark(track)

    # -- ending ---------------------------------------------------------------------------------------------------

    def _leave_if_ended(self, track: Track) -> None:
        if track.topic.ended_at(track.position):
            self._leave(track)

    def _leave(self, track: Track) -> None:
        self._hub.leave(track)
        self._note_end(track.topic.task_id, track.position)

    def _note_end(self, task_id: UUID, sequence: int) -> None:
        if self._follow is not None:
            self._follow.note_end(task_id, sequence)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _position(task: TaskRecord) -> Position:
    return Position(task.sequence, task.state, task.namespace)


def _dense(page: Sequence[TaskEvent]) -> int:
    """How many events of the page follow each other without a hole."""
    first = page[0].sequence
    return next((index for index, event in enumerate(page) if event.sequence != first + index), len(page))
