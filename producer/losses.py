"""Which messages are lost? Judged from what the stream has passed, and never from age alone (rule 4). Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from headrace_core.tasks.model import UnitId
from headrace_core.tasks.reconciliation import Doubtful

PATIENCE_IN_LEASES = 3
"""The broker gives a message up after three deliveries, an ack_wait each, and a lease is two: this is twice as long."""


class LossWatch:
    """Keeps since when each delivered message has been seen with its unit still waiting."""

    def __init__(self) -> None:
        self._since: dict[tuple[UnitId, int], float] = {}

    def see(
        self,
        doubtful: Sequence[Doubtful],
        incarnation: int,
        gone: Mapping[tuple[str, str], int],
        now: float,
        lease_of: Callable[[str], float],
    ) -> list[Doubtful]:
        """Those of a round's reading that are lost, at `now` (monotonic seconds).

        Certainly: of an earlier incarnation, or at or below the sequence in `gone` (by queue and level) up to which
        nothing will be delivered any more. In effect: delivered, and for three leases in rounds of ours nobody
        claimed the unit.
        """
        keys = {(item.unit_id, item.dispatch) for item in doubtful}
        self._since = {key: self._since.get(key, now) for key in keys}
        return [
            item
            for item in doubtful
            if item.incarnation != incarnation
            or item.sequence <= gone.get((item.queue, item.level), 0)
            or now - self._since[item.unit_id, item.dispatch] >= PATIENCE_IN_LEASES * lease_of(item.queue)
        ]
