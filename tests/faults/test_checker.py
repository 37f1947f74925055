"""Every check against made-up runs: clean where the promise was kept, and seen to fire where it was broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import synthetic as made
from tests.faults.checker import CHECKS, check, totals, unproven
from tests.faults.checker.index import Index
from tests.faults.model import (
    LABEL_WATCH,
    MERGE,
    TASK,
    Attempt,
    DeadLetter,
    Event,
    Finding,
    Note,
    Run,
    StreamEntry,
    Unit,
)
from tests.faults.synthetic import both, changed_unit, ran, result, shown, watched, with_more, without

EXHAUSTED = "ATTEMPTS_EXHAUSTED"
SLOW = "the watcher took its events too slowly"

BROKEN = [
    ("lost", without("units", task=made.PLAIN)),
    ("lost", changed_unit(made.PLAIN, state="PROCESSING")),
    ("two_terminal_states", changed_unit(made.PLAIN, state="CANCELLED")),
    ("two_terminal_states", changed_unit(made.PLAIN, state="PENDING")),
    ("two_terminal_states", with_more("events", Event(made.PLAIN, 4, 1, TASK, "state", "CANCELLED", terminal=True))),
    ("two_terminal_states", changed_unit(made.PLAIN, generation=2)),
    (
        "two_terminal_states",
        with_more("history", Note(3.0, "c", "got", {"id": made.PLAIN, "generation": 1, "state": "CANCELLED"})),
    ),
    (
        "two_terminal_states",
        with_more("history", watched("w4", "event", sequence=3, generation=1, state="FAILED", terminal=True)),
    ),
    ("wrong_results", changed_unit(made.PLAIN, result=result(1, 2))),
    ("wrong_results", changed_unit(made.PLAIN, state="EXPIRED")),
    ("wrong_results", changed_unit(made.PLAIN, crashes=1)),
    ("wrong_results", with_more("history", *made.submitted(made.SHARDED, state=["COMPLETED"], shards=3))),
    ("publications_numbered", changed_unit(made.FLAKY, dispatch=1)),
    (
        "publications_numbered",
        with_more("history", Note(1.0, "c", "row_seen", {"id": made.FLAKY, "unit": -1, "dispatch": 1, "charges": 1})),
    ),
    ("unknown_submits_resolved", with_more("units", made.task("second", "COMPLETED", 3, key=made.PLAIN))),
    ("unknown_submits_resolved", with_more("units", made.task("refused", "COMPLETED", 3))),
    ("unknown_submits_resolved", with_more("units", made.task("nobody's", "COMPLETED", 3))),
    (
        "idempotency",
        with_more("history", Note(1.0, "c", "submit_ok", {"key": made.PLAIN, "id": made.FLAKY, "created": False})),
    ),
    (
        "idempotency",
        with_more("history", Note(1.0, "c", "submit_ok", {"key": made.PLAIN, "id": made.PLAIN, "created": True})),
    ),
    ("idempotency", changed_unit(made.PLAIN, key="another")),
    ("result_writer_is_latest_holder", changed_unit(made.FLAKY, result=result(1))),
    ("result_writer_is_latest_holder", changed_unit(made.FLAKY, result=result(2, worker=made.WORKER))),
    ("result_writer_is_latest_holder", changed_unit(made.SHARDED, result=result(1))),
    ("result_writer_is_latest_holder", changed_unit(made.SHARDED, 0, result=result(1))),
    ("result_writer_is_latest_holder", with_more("ledger", *ran(made.PLAIN, TASK, 2, "started"))),
    ("result_writer_is_latest_holder", without("ledger", task=made.PLAIN, what="effect")),
    ("epochs_rise_and_never_restart", changed_unit(made.REDRIVEN, epoch=1, result=result(1))),
    ("epochs_rise_and_never_restart", with_more("ledger", *ran(made.PLAIN, TASK, 1, "started", worker=made.OTHER))),
    (
        "epochs_rise_and_never_restart",
        with_more("attempts", Attempt(made.PLAIN, TASK, 1, 2, 0, made.WORKER, "PENDING")),
    ),
    ("ended_tasks_hold_nothing", changed_unit(made.SHARDED, 1, state="PENDING")),
    ("ended_tasks_hold_nothing", changed_unit(made.PLAIN, held=True)),
    ("cancelled_stays", changed_unit(made.CANCELLED, state="COMPLETED")),
    ("cancelled_stays", with_more("ledger", *ran(made.CANCELLED, TASK, 2, "started"))),
    ("budgets_not_mixed", changed_unit(made.PLAIN, crashes=1)),
    ("budgets_not_mixed", changed_unit(made.FLAKY, failures=0)),
    ("budgets_not_mixed", without("ledger", task=made.FLAKY, what="raised")),
    (
        "budgets_not_mixed",
        both(
            changed_unit(made.PLAIN, crashes=1, epoch=2, attempt=2),
            with_more("attempts", Attempt(made.PLAIN, TASK, 1, 1, 1, made.WORKER, "PENDING", "CRASHED")),
            with_more("ledger", *ran(made.PLAIN, TASK, 1, "cancelled")),
        ),
    ),
    ("interruptions_bounded", changed_unit(made.PLAIN, interruptions=7)),
    ("failed_iff_dead_letter", without("dead_letters", task=made.FAILED)),
    ("failed_iff_dead_letter", with_more("dead_letters", DeadLetter("p-1", made.PLAIN, 1, "default", EXHAUSTED))),
    ("failed_iff_dead_letter", changed_unit(made.DISCARDED, state="FAILED")),
    ("failed_iff_dead_letter", changed_unit(made.REDRIVEN, generation=1)),
    ("dead_letter_stream_agrees", without("stream", id="failed-1")),
    ("dead_letter_stream_agrees", with_more("stream", StreamEntry("redriven-1", 3, EXHAUSTED))),
    ("dead_letter_stream_agrees", with_more("stream", StreamEntry("failed-1", 3, EXHAUSTED))),
    (
        "dead_letter_stream_agrees",
        both(without("stream", id="failed-1"), with_more("stream", StreamEntry("failed-1", 3, "CRASHED"))),
    ),
    ("sequences_dense", without("events", task=made.PLAIN, sequence=2)),
    ("sequences_dense", changed_unit(made.PLAIN, sequence=4)),
    ("sequences_dense", with_more("events", Event(made.PLAIN, 3, 1, TASK, "progress"))),
    ("events_after_terminal", with_more("events", Event(made.PLAIN, 4, 1, TASK, "progress"))),
    ("events_after_terminal", with_more("events", Event(made.REDRIVEN, 7, 1, TASK, "progress"))),
    ("transitions_exist", with_more("events", Event(made.PLAIN, 4, 1, TASK, "state", "PROCESSING"))),
    ("watch_order", without("history", watch="w1", sequence=2)),
    ("watch_order", with_more("history", watched("w5", "opened", after=None), shown("w5", 4, "COMPLETED"))),
    ("watch_order", with_more("history", watched("w5", "opened", after=None), shown("w5", 2, "COMPLETED"))),
    (
        "watch_order",
        with_more("history", watched("w5", "snapshot", sequence=2, generation=1, state="PENDING")),
    ),
    ("watch_gaps_explained", with_more("history", watched("w5", "gap", **{"from": 1, "to": 3}))),
    ("watch_gaps_explained", with_more("history", watched("w5", "gap", **{"from": 1, "to": 3, "cause": SLOW}))),
    ("watch_ends_with_last", without("history", watch="w1", what="watch_ended")),
    ("watch_ends_with_last", without("history", watch="w1", sequence=3)),
    (
        "watch_ends_with_last",
        with_more("history", watched("w5", "opened", after=1), watched("w5", "ended", terminal=False, code="OK")),
    ),
    (
        "watch_ends_with_last",
        with_more("history", watched("w5", "opened", after=1), watched("w5", "ended", terminal=False, code="INTERNAL")),
    ),
    ("label_watch_shows_all", without("history", watch=f"{LABEL_WATCH}{made.FLAKY}")),
    ("one_merge", without("units", task=made.SHARDED, unit=MERGE)),
    ("one_merge", changed_unit(made.SHARDED, done_shards=1)),
    ("one_merge", changed_unit(made.SHARDED, state="CANCELLED")),
    ("one_merge", both(changed_unit(made.SHARDED, 0, state="CANCELLED"), changed_unit(made.SHARDED, done_shards=1))),
    ("finished_shards_not_rerun", with_more("ledger", *ran(made.SHARDED, 0, 3, "started"))),
]


def finding(name: str, run: Run) -> Finding:
    return next(found for found in check(run) if found.name == name)


def test_a_run_that_kept_every_promise_is_clean_and_every_check_had_something_to_look_at() -> None:
    findings = check(made.a_run())
    assert [found for found in findings if found.violations] == []
    assert unproven(findings) == []


@pytest.mark.parametrize(("name", "bend"), BROKEN, ids=[f"{name}-{n}" for n, (name, _) in enumerate(BROKEN)])
def test_a_broken_promise_fires_its_check(name: str, bend: made.Bend) -> None:
    assert finding(name, bend(made.a_run())).violations


def test_every_check_has_been_seen_to_fire() -> None:
    # `counters` counts, it judges nothing.
    assert {look.__name__ for look in CHECKS} - {name for name, _ in BROKEN} == {"counters"}


def test_a_run_without_anything_proves_nothing() -> None:
    findings = check(Run())
    assert all(found.is_clean for found in findings)
    assert unproven(findings) == [look.__name__ for look in CHECKS]


def test_without_a_broker_the_dead_letter_stream_is_not_looked_at() -> None:
    assert finding("dead_letter_stream_agrees", replace(made.a_run(), stream=None)).checked == 0


def test_a_task_may_end_as_cancelled_whatever_was_wanted_once_somebody_asked_for_it() -> None:
    wanted = with_more("history", *made.submitted(made.CANCELLED, state=["COMPLETED"]))
    assert finding("wrong_results", wanted(made.a_run())).is_clean
    unasked = without("history", what="cancel_sent")(wanted(made.a_run()))
    assert finding("wrong_results", unasked).violations


def test_what_ran_when_its_task_failed_is_not_charged_with_the_reason_of_the_task() -> None:
    neighbour = Attempt(made.SHARDED, 1, 1, 1, 1, made.WORKER, "CANCELLED", EXHAUSTED)
    bend = both(with_more("attempts", neighbour), without("ledger", task=made.SHARDED, unit=1))
    assert finding("budgets_not_mixed", bend(made.a_run())).is_clean


def test_a_zombie_that_starts_late_under_its_old_epoch_is_legal() -> None:
    late = [replace(note, at=99.0) for note in ran(made.FLAKY, TASK, 1, "started", "effect")]
    findings = check(with_more("ledger", *late)(made.a_run()))
    assert [found.name for found in findings if found.violations] == []
    assert totals(with_more("ledger", *late)(made.a_run()))["unrecorded_effects"] == 1


def test_the_last_value_of_each_process_counts_once() -> None:
    def metric(at: float, process: str, value: float) -> Note:
        return Note(at, "faults", "metric", {"process": process, "name": "fenced_total", "value": value})

    run = Run(faults=(metric(1, "a", 1.0), metric(2, "a", 3.0), metric(2, "b", 2.0)))
    assert totals(run)["fenced_total"] == 5


def test_a_gap_is_honest_where_the_events_are_gone_and_where_a_watcher_is_far_behind() -> None:
    gone = both(without("events", task=made.PLAIN, sequence=2), _with_gap(1, 2))
    assert finding("watch_gaps_explained", gone(made.a_run())).is_clean
    many = with_more("events", *(Event(made.PLAIN, number, 1, TASK, "output") for number in range(4, 1500)))
    assert finding("watch_gaps_explained", both(many, _with_gap(3, 1400, cause=SLOW))(made.a_run())).is_clean
    assert finding("watch_gaps_explained", both(many, _with_gap(3, 1400))(made.a_run())).violations


def _with_gap(since: int, to: int, cause: str = "") -> made.Bend:
    return with_more("history", watched("w5", "gap", **{"from": since, "to": to, "cause": cause}))


STEPS = st.lists(st.sampled_from(["retry", "progress"]), max_size=6)


@given(STEPS, st.sampled_from(["COMPLETED", "CANCELLED", "EXPIRED"]), st.data())
def test_any_legal_history_is_clean_and_losing_or_repeating_one_event_is_seen(
    steps: list[str], end: str, data: st.DataObject
) -> None:
    run = _a_history(steps, end)
    names = ("sequences_dense", "events_after_terminal", "transitions_exist", "two_terminal_states")
    assert all(finding(name, run).is_clean for name in names)
    at = data.draw(st.integers(0, len(run.events) - 1))
    fewer = replace(run, events=(*run.events[:at], *run.events[at + 1 :]))
    more = replace(run, events=(*run.events, run.events[at]))
    assert finding("sequences_dense", fewer).violations
    assert finding("sequences_dense", more).violations


def _a_history(steps: list[str], end: str) -> Run:
    states: list[tuple[str, str | None]] = [("state", "PENDING"), ("state", "PROCESSING")]
    for step in steps:
        states += [("state", "PENDING"), ("state", "PROCESSING")] if step == "retry" else [("progress", None)]
    states.append(("state", end))
    events = tuple(
        Event("t", number, 1, TASK, type_, state, terminal=state == end)
        for number, (type_, state) in enumerate(states, 1)
    )
    return Run(events=events, units=(Unit("t", TASK, "k", end, sequence=len(events)),))


def test_the_index_finds_the_unit_that_wrote_a_result() -> None:
    index = Index(made.a_run())
    merge = index.finisher(index.tasks[made.SHARDED])
    assert merge is not None
    assert merge.unit == MERGE
    assert index.finisher(index.tasks[made.PLAIN]) is index.tasks[made.PLAIN]
