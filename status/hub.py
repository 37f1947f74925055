"""The registry of everything that is watched, and the one loop that reads for all of it.

A wake is a hint that a task has events; the loop reads the events of all hinted tasks in one statement and tells their
watchers. Two hundred watchers of a task cost one read, ten thousand watched tasks two statements a sweep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from headrace.v1.event_pb2 import TaskEvent
from headrace_core.db.errors import DatabaseUnavailable
from headrace_core.db.pool import Database
from headrace_core.errors import Draining, ServerLimit
from headrace_core.rpc.convert import event_message
from headrace_core.runtime.pace import Pace
from headrace_core.tasks.model import TERMINAL
from headrace_core.tasks.reading import EventRecord, Position, read_events
from headrace_core.telemetry import logs, metrics
from status.limits import WakeLike, WatchLimits
from status.topic import Topic
from status.watcher import Track, Watcher

FIRST_RETRY = 0.1
LONGEST_RETRY = 2.0
BUSY_AGAIN = 5.0

log = logs.get(__name__)


class Hub:
    """Who watches what. One for the process; all methods belong to the event loop.

    `run` must be running for anything to arrive.
    """

    def __init__(self, db: Database, limits: WatchLimits) -> None:
        self.limits = limits
        self._db = db
        self._topics: dict[UUID, Topic] = {}
        self._watchers: dict[Watcher, None] = {}
        self._dirty: dict[Topic, None] = {}
        self._work = asyncio.Event()
        self._buffered = 0
        self._draining: Draining | None = None
        self._pace = Pace(limits.collect, limits.crowd)

    # -- streams come and go --------------------------------------------------------------------------------------

    @contextmanager
    def watcher(self) -> Iterator[Watcher]:
        """A watcher for the life of a stream.

        Raises:
            Draining: the service is stopping.
            ServerLimit: as many streams as this process serves are open.
        """
        if self._draining is not None:
            raise Draining(self._draining.message)
        if len(self._watchers) >= self.limits.max_watches:
            raise ServerLimit(
                f"this server has {self.limits.max_watches:,} watches open, its limit; try again or at another replica",
                retry_after=BUSY_AGAIN,
                metadata={"limit": str(self.limits.max_watches)},
            )
        watcher = Watcher(self.limits.max_tasks)
        self._watchers[watcher] = None
        self._show()
        try:
            yield watcher
        finally:
            for track in list(watcher.tracks.values()):
                self.leave(track)
            del self._watchers[watcher]
            self._show()

    def join(self, watcher: Watcher, task_id: UUID, stands: Position, after: int) -> Track:
        """Watch a task from `after` on, given where it stood at a moment before this call.

        Raises:
            ServerLimit: as many tasks as this process follows are watched.
        """
        topic = self._topics.get(task_id)
        if topic is None:
            if len(self._topics) >= self.limits.max_tasks:
                raise self.too_many_tasks()
            topic = Topic(task_id, stands.sequence, terminal=stands.state in TERMINAL)
            self._topics[task_id] = topic
            # What was committed since, and its wake, may have come before there was anything to wake.
            self._mark_dirty(topic)
        track = Track(watcher, topic, after)
        topic.tracks[track] = None
        watcher.tracks[task_id] = track
        self.hear(topic, stands.sequence)
        watcher.mark(track)
        return track

    def leave(self, track: Track) -> None:
        """Watch this task no longer on this stream."""
        topic = track.topic
        track.watcher.tracks.pop(topic.task_id, None)
        topic.tracks.pop(track, None)
        self._resize(topic, topic.forget_taken)
        if not topic.tracks:
            self._topics.pop(topic.task_id, None)
            self._dirty.pop(topic, None)

    def too_many_tasks(self) -> ServerLimit:
        """The error of a stream that would follow more tasks than this process does."""
        return ServerLimit(
            f"this server follows {self.limits.max_tasks:,} tasks, its limit; watch fewer, or at another replica",
            retry_after=BUSY_AGAIN,
            metadata={"limit": str(self.limits.max_tasks)},
        )

    def drain(self) -> None:
        """End every stream, now and from now on, with DRAINING. Idempotent."""
        self._draining = Draining("the status service is stopping; connect again and resume after the last sequence")
        for watcher in self._watchers:
            watcher.fail(self._draining)

    @property
    def watched(self) -> int:
        """Tasks that are watched."""
        return len(self._topics)

    @property
    def buffered_bytes(self) -> int:
        """Size of the events that wait for watchers."""
        return self._buffered

    # -- hints ----------------------------------------------------------------------------------------------------

    def wake(self, wakes: Iterable[WakeLike]) -> None:
        """These tasks have events. What is not watched, or known already, costs nothing."""
        for wake in wakes:
            topic = self._topics.get(wake.task_id)
            if topic is not None:
                self.hear(topic, wake.sequence)

    def hear(self, topic: Topic, sequence: int) -> None:
        """Somebody knows of an event of this sequence."""
        topic.heard = max(topic.heard, sequence)
        if sequence > topic.cursor:
            self._mark_dirty(topic)

    def sweep(self) -> None:
        """Read every watched task again, whether or not anybody has been woken; forget what all its watchers have."""
        for topic in self._topics.values():
            self._dirty[topic] = None
            if topic.kept_bytes:
                self._resize(topic, topic.forget_taken)
        if self._dirty:
            self._work.set()
        self._show()

    def taken(self, topic: Topic) -> None:
        """A watcher has taken from the topic. With one watcher, what it has taken is kept no longer than that."""
        if len(topic.tracks) == 1:
            self._resize(topic, topic.forget_taken)

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read for everybody until cancelled. While Postgres is away, streams stay open and wait."""
        retry = 0.0
        while True:
            await self._work.wait()
            await asyncio.sleep(retry)
            await self._pace.gather()
            batch = self._take_dirty()
            self._pace.took(len(batch))
            try:
                await self._read(batch)
            except DatabaseUnavailable as error:
                self._put_back(batch)
                if not retry:
                    log.warning(f"watches wait for Postgres: {error}", action="watch.database_away")
                retry = min(max(FIRST_RETRY, retry * 2), LONGEST_RETRY)
            else:
                if retry:
                    log.info("watches are served again", action="watch.database_back")
                retry = 0.0

    def _show(self) -> None:
        metrics.watchers.set(len(self._watchers))
        metrics.watched_tasks.set(len(self._topics))
        metrics.watch_buffered_bytes.set(self._buffered)

    def _mark_dirty(self, topic: Topic) -> None:
        self._dirty[topic] = None
        self._work.set()

    def _take_dirty(self) -> list[Topic]:
        batch = list(self._dirty)[: self.limits.read_tasks]
        for topic in batch:
            del self._dirty[topic]
        if not self._dirty:
            self._work.clear()
        return batch

    def _put_back(self, batch: list[Topic]) -> None:
        for topic in batch:
            if topic.tracks:
                self._mark_dirty(topic)

    async def _read(self, batch: list[Topic]) -> None:
        limits = self.limits
        rows = await read_events(
            self._db,
            [(topic.task_id, topic.cursor) for topic in batch],
            per_task=limits.read_events_per_task,
            limit=limits.read_events,
        )
        found: dict[UUID, list[EventRecord]] = {}
        for row in rows:
            found.setdefault(row.task_id, []).append(row)
        # A statement that is full says nothing about the last task with rows and those after it.
        full = len(rows) == limits.read_events
        certain = not full
        for topic in reversed(batch):
            of_topic = found.get(topic.task_id, [])
            whole = certain and len(of_topic) < limits.read_events_per_task
            certain = certain or bool(of_topic)
            if of_topic or not whole or topic.more or topic.heard > topic.cursor:  # a sweep finds mostly nothing
                self._publish(topic, [event_message(row) for row in of_topic], whole=whole)

    def _publish(self, topic: Topic, events: list[TaskEvent], *, whole: bool) -> None:
        """Hand what was read to the topic and tell its watchers."""
        if not topic.tracks:
            return
        phantom = whole and not events and topic.heard > topic.cursor and topic not in self._dirty
        if phantom:
            topic.heard = topic.cursor  # what was heard of is not there: retention was faster
        changed = bool(events) or phantom or topic.more == whole
        topic.more = not whole
        limits = self.limits
        self._resize(topic, lambda: topic.append(events, max_events=limits.topic_events, max_bytes=limits.topic_bytes))
        if self._buffered > limits.buffered_bytes:
            self._resize(topic, topic.clear)
        if not whole:
            self._mark_dirty(topic)
        if changed:
            for track in topic.tracks:
                track.watcher.mark(track)

    def _resize(self, topic: Topic, change: Callable[[], None]) -> None:
        before = topic.kept_bytes
        change()
        self._buffered += topic.kept_bytes - before
