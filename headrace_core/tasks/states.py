"""The state machine of a task: which transitions exist, and which events of the world cause them.

The guarded statements in sql/ enforce it; tests hold every recorded history against this table.
docs/state-machine.md draws it.
"""

from __future__ import annotations

from headrace_core.tasks.model import TERMINAL, TaskState

TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset({TaskState.PROCESSING, TaskState.CANCELLED, TaskState.EXPIRED}),
    TaskState.PROCESSING: frozenset(
        {TaskState.PENDING, TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED}
    ),
    # Only by redrive (PENDING; PROCESSING where a plan and its finished shards are kept) or discard (CANCELLED).
    TaskState.FAILED: frozenset({TaskState.PENDING, TaskState.PROCESSING, TaskState.CANCELLED}),
    TaskState.COMPLETED: frozenset(),
    TaskState.CANCELLED: frozenset(),
    TaskState.EXPIRED: frozenset(),
}


def may_become(state: TaskState, following: TaskState) -> bool:
    """True if a task may go from `state` to `following` in one step."""
    return following in TRANSITIONS[state]


def is_terminal(state: TaskState) -> bool:
    """True if only a redrive or a discard (both of FAILED) leads out of `state`."""
    return state in TERMINAL
