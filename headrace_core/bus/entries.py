"""A dead letter as its entry in the DLQ stream: the one place that knows the row and the message."""

import json

from headrace_core.bus.dead_letters import DeadLetter as StreamEntry
from headrace_core.tasks.dead_letters import DeadLetter


def entry_of(letter: DeadLetter) -> StreamEntry:
    """A dead letter as its entry in the stream."""
    budgets = json.loads(letter.budgets)
    return StreamEntry(
        id=letter.id,
        queue=letter.queue,
        reason=letter.reason,
        error=letter.error,
        attempts=sum(budgets.get(name, 0) for name in ("failures", "crashes", "interruptions")),
        origin=str(letter.task_id or letter.id),
        created_at=letter.created_at,
        kind=letter.kind,
        namespace=letter.namespace,
        task_id=letter.task_id,
        generation=letter.generation if letter.task_id else None,
    )
