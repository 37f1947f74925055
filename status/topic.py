"""What is kept of one watched task: how far it was read, and the events that some watcher has not taken yet.

No I/O: the hub reads and appends, each watcher takes from its own position. An event is kept once, however many watch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from headrace.v1.event_pb2 import TaskEvent
from status.messages import is_task_state

if TYPE_CHECKING:
    from status.watcher import Track


class Topic:
    """One watched task.

    `cursor`: every event up to this sequence has been read, and none after it. `heard`: the greatest sequence that
    anybody has told of. `terminal`: the task's own latest state at the cursor is terminal. `more`: the last read was
    cut short, so there may be events after the cursor that were committed before it.
    """

    __slots__ = ("_events", "cursor", "heard", "kept_bytes", "more", "task_id", "terminal", "tracks")

    def __init__(self, task_id: UUID, cursor: int, *, terminal: bool) -> None:
        self.task_id = task_id
        self.cursor = cursor
        self.heard = cursor
        self.terminal = terminal
        self.more = False
        self.kept_bytes = 0
        self.tracks: dict[Track, None] = {}
        self._events: list[TaskEvent] = []

    def __len__(self) -> int:
        return len(self._events)

    def append(self, events: Sequence[TaskEvent], *, max_events: int, max_bytes: int) -> None:
        """Add what was read after the cursor, and forget the oldest beyond the bounds."""
        self.forget_taken()
        for event in events:
            if event.sequence != self.cursor + 1:
                self.clear()  # a hole in the history: what was kept before it is of no use to those who are behind it
            self._events.append(event)
            self.kept_bytes += event.ByteSize()
            self.cursor = event.sequence
            if is_task_state(event):
                self.terminal = event.state_change.terminal
        self.heard = max(self.heard, self.cursor)
        self._forget_oldest(self._excess(max_events, max_bytes))

    def take(self, position: int) -> list[TaskEvent] | None:
        """The events after `position`, oldest first; None if some of them are no longer kept here."""
        behind = self.cursor - position
        if behind <= 0:
            return []
        return self._events[-behind:] if behind <= len(self._events) else None

    def ended_at(self, position: int) -> bool:
        """True if nothing follows `position` and the task is terminal there."""
        return self.terminal and not self.more and position == self.cursor == self.heard

    def forget_taken(self) -> None:
        """Forget what every watcher has."""
        slowest = min((track.position for track in self.tracks), default=self.cursor)
        self._forget_oldest(len(self._events) - max(0, self.cursor - slowest))

    def clear(self) -> None:
        """Forget every event: those who had not taken them will get a gap."""
        self._events.clear()
        self.kept_bytes = 0

    def _excess(self, max_events: int, max_bytes: int) -> int:
        """How many of the oldest to forget so that the rest is within both bounds."""
        count, size = max(0, len(self._events) - max_events), self.kept_bytes
        size -= sum(event.ByteSize() for event in self._events[:count])
        while size > max_bytes:
            size -= self._events[count].ByteSize()
            count += 1
        return count

    def _forget_oldest(self, count: int) -> None:
        if count >= len(self._events):
            self.clear()
        elif count > 0:
            self.kept_bytes -= sum(event.ByteSize() for event in self._events[:count])
            del self._events[:count]
