"""Whether a finished run kept the promises. Pure: a Run in, findings out; a module for each promise."""

from __future__ import annotations

from collections.abc import Iterable

from tests.faults.checker.accepted import (
    cancelled_stays,
    lost,
    publications_numbered,
    two_terminal_states,
    unknown_submits_resolved,
    wrong_results,
)
from tests.faults.checker.budgets import budgets_not_mixed, interruptions_bounded
from tests.faults.checker.counters import counters, totals
from tests.faults.checker.dead_letters import dead_letter_stream_agrees, failed_iff_dead_letter
from tests.faults.checker.events import events_after_terminal, sequences_dense, transitions_exist
from tests.faults.checker.fencing import (
    ended_tasks_hold_nothing,
    epochs_rise_and_never_restart,
    result_writer_is_latest_holder,
)
from tests.faults.checker.idempotency import idempotency
from tests.faults.checker.index import Index
from tests.faults.checker.shards import finished_shards_not_rerun, one_merge
from tests.faults.checker.watching import (
    label_watch_shows_all,
    watch_ends_with_last,
    watch_gaps_explained,
    watch_order,
)
from tests.faults.model import Finding, Run

CHECKS = (
    lost,
    two_terminal_states,
    wrong_results,
    publications_numbered,
    unknown_submits_resolved,
    idempotency,
    result_writer_is_latest_holder,
    epochs_rise_and_never_restart,
    ended_tasks_hold_nothing,
    cancelled_stays,
    budgets_not_mixed,
    interruptions_bounded,
    failed_iff_dead_letter,
    dead_letter_stream_agrees,
    sequences_dense,
    events_after_terminal,
    transitions_exist,
    watch_order,
    watch_gaps_explained,
    watch_ends_with_last,
    label_watch_shows_all,
    one_merge,
    finished_shards_not_rerun,
    counters,
)


def check(run: Run) -> list[Finding]:
    """One finding for each check, in the order of the promises, clean or not."""
    index = Index(run)
    return [look(index) for look in CHECKS]


def unproven(findings: Iterable[Finding]) -> list[str]:
    """The checks that had nothing to look at: the run says nothing about them."""
    return [finding.name for finding in findings if finding.checked == 0]


__all__ = ["CHECKS", "check", "totals", "unproven"]
