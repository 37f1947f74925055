"""Tasks for the watches that follow a filter: those created after the watch began, however they come to be known.

A wake of a task that such a watch does not follow makes it a candidate; candidates are asked about together. Because
any wake may be lost, recently created tasks are looked for as well, with every sweep.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from headrace_core.db.errors import DatabaseUnavailable
from headrace_core.db.pool import Database
from headrace_core.errors import ServerLimit
from headrace_core.tasks.model import TERMINAL, TaskState
from headrace_core.tasks.reading import (
    Position,
    TaskFilter,
    ended_matching,
    list_tasks,
    matching_of,
    recent_matching,
)
from headrace_core.telemetry import logs
from status.limits import WakeLike, WatchLimits
from status.watcher import Watcher

_PAGE = 1_000
_CANDIDATES = 5_000
"""Ids asked about in one statement."""
_MAX_RECENT = 50_000
_LONGEST_LOOK_BACK = 3_600.0
_UNFINISHED = (TaskState.PENDING, TaskState.PROCESSING)

log = logs.get(__name__)


class Follow:
    """One stream that follows a filter: what it watches, and what it has seen end."""

    def __init__(self, db: Database, group: _Group, watcher: Watcher, limits: WatchLimits) -> None:
        self._db = db
        self._group = group
        self._watcher = watcher
        self._limits = limits
        self._ended: OrderedDict[UUID, int] = OrderedDict()

    async def unfinished(self) -> list[UUID]:
        """The newest matching tasks that have not ended, newest first. Raises DatabaseUnavailable."""
        found: list[UUID] = []
        wanted = self._group.unfinished
        while len(found) < self._limits.filter_tasks:
            page = min(_PAGE, self._limits.filter_tasks - len(found))
            before = {"before": found[-1]} if found else {}
            tasks = await list_tasks(self._db, wanted, limit=page, **before)
            found += [task.id for task in tasks]
            if len(tasks) < page:
                break
        return found

    async def ended(self, since: datetime) -> list[UUID]:
        """The newest matching tasks that ended at `since` or later. Raises DatabaseUnavailable."""
        return list(await ended_matching(self._db, self._group.wanted, since, limit=self._limits.filter_tasks))

    def note_end(self, task_id: UUID, sequence: int) -> None:
        """The stream has shown the task up to its end at `sequence`."""
        self._ended[task_id] = sequence
        self._ended.move_to_end(task_id)
        if len(self._ended) > self._limits.remembered:
            self._ended.popitem(last=False)

    def ended_at(self, task_id: UUID) -> int | None:
        """Where the stream has seen the task end; None if it has not."""
        return self._ended.get(task_id)

    def wants(self, task_id: UUID, sequence: int) -> bool:
        """True if the stream neither watches the task nor has seen it end at `sequence` or later."""
        return task_id not in self._watcher.tracks and sequence > self._ended.get(task_id, -1)

    def admit(self, found: Mapping[UUID, Position], limit_error: ServerLimit) -> None:
        """These tasks match the filter."""
        for task_id, position in found.items():
            if self.wants(task_id, position.sequence):
                self._watcher.arrive(task_id, limit_error)


class _Group:
    """The streams that follow one and the same filter: they share its questions."""

    def __init__(self, wanted: TaskFilter) -> None:
        self.wanted = wanted
        self.follows: dict[Follow, None] = {}
        self.candidates: dict[UUID, None] = {}
        self.unmatched: set[UUID] = set()
        self.looked_at: float | None = None

    @property
    def unfinished(self) -> TaskFilter:
        """The filter, less what has ended."""
        return replace(self.wanted, states=_UNFINISHED)

    def offer(self, wake: WakeLike) -> bool:
        """True if the task is worth a question."""
        if wake.task_id in self.unmatched or len(self.candidates) >= _CANDIDATES:
            return False
        if not any(follow.wants(wake.task_id, wake.sequence) for follow in self.follows):
            return False
        self.candidates[wake.task_id] = None
        return True


class Discovery:
    """All streams that follow filters. One for the process; `run` must be running."""

    def __init__(self, db: Database, limits: WatchLimits) -> None:
        self._db = db
        self._limits = limits
        self._groups: dict[TaskFilter, _Group] = {}
        self._work = asyncio.Event()
        self._look = False

    @asynccontextmanager
    async def follow(self, wanted: TaskFilter, watcher: Watcher) -> AsyncIterator[Follow]:
        """Follow a filter for the life of a stream: matching tasks arrive at `watcher`.

        Raises:
            ServerLimit: as many filters as this process follows are followed.
            DatabaseUnavailable: Postgres does not answer.
        """
        if sum(len(group.follows) for group in self._groups.values()) >= self._limits.max_filter_watches:
            raise ServerLimit(
                f"this server follows {self._limits.max_filter_watches} filters, its limit; try another replica",
                retry_after=5.0,
                metadata={"limit": str(self._limits.max_filter_watches)},
            )
        group = self._groups.setdefault(wanted, _Group(wanted))
        follow = Follow(self._db, group, watcher, self._limits)
        group.follows[follow] = None
        try:
            await self._forget_what_has_ended(group, follow)
            yield follow
        finally:
            del group.follows[follow]
            if not group.follows:
                self._groups.pop(wanted, None)

    def wake(self, wakes: Iterable[WakeLike]) -> None:
        """Tasks have events; perhaps some of them are wanted."""
        if not self._groups:
            return
        for wake in wakes:
            for group in self._groups.values():
                if group.offer(wake):
                    self._work.set()

    def look(self) -> None:
        """Look for recently created tasks."""
        if self._groups:
            self._look = True
            self._work.set()

    async def run(self) -> None:
        """Answer the questions until cancelled."""
        while True:
            await self._work.wait()
            await asyncio.sleep(self._limits.discover)
            self._work.clear()
            look, self._look = self._look, False
            for group in list(self._groups.values()):
                try:
                    await self._ask(group, look=look)
                except DatabaseUnavailable as error:
                    log.info(f"a filter watch could not look for tasks: {error}", action="watch.discovery_failed")

    async def _ask(self, group: _Group, *, look: bool) -> None:
        candidates, group.candidates = list(group.candidates), {}
        if candidates:
            found = await matching_of(self._db, group.wanted, candidates)
            if len(group.unmatched) > self._limits.remembered:
                group.unmatched.clear()
            group.unmatched.update(task_id for task_id in candidates if task_id not in found)
            self._admit(group, found)
        if look:
            self._admit(group, await self._recent(group))

    async def _recent(self, group: _Group) -> dict[UUID, Position]:
        """Created since the last look that went well, and a while before: commits are not seen in the order of ids."""
        now = asyncio.get_running_loop().time()
        since = 0.0 if group.looked_at is None else min(now - group.looked_at, _LONGEST_LOOK_BACK)
        found = await recent_matching(self._db, group.wanted, since + self._limits.recent, limit=_MAX_RECENT)
        group.looked_at = now
        return found

    async def _forget_what_has_ended(self, group: _Group, follow: Follow) -> None:
        """What ended before the watch began is neither unfinished nor new. Others of the group may not know it yet."""
        found = await self._recent(group)
        for task_id, position in found.items():
            if position.state in TERMINAL:
                follow.note_end(task_id, position.sequence)
        self._admit(group, found)

    def _admit(self, group: _Group, found: Mapping[UUID, Position]) -> None:
        limit = self._limits.max_tasks
        said = f"more than {limit:,} tasks match the filter at once, which is the limit; narrow it"
        error = ServerLimit(said, retry_after=5.0, metadata={"limit": str(limit)})
        for follow in group.follows:
            follow.admit(found, error)
