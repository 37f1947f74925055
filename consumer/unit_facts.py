"""How the log names a unit: the one place that decides which fields, and what they are called."""

from __future__ import annotations

from headrace_core.tasks.model import ClaimedUnit


def facts_of(unit: ClaimedUnit) -> dict[str, object]:
    """What every line that concerns a unit has."""
    lease = unit.lease
    return {
        "task": str(lease.unit_id.task_id),
        "unit": lease.unit_id.unit,
        "namespace": unit.namespace,
        "queue": unit.queue,
        "kind": unit.kind,
        "attempt": unit.attempt,
        "epoch": lease.epoch,
    }
