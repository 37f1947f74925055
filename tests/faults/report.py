"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.faults.model import Finding
from tests.faults.run import Outcome
from tests.faults.scenarios import MIXTURE

SHOWN_VIOLATIONS = 10
SUMMARY = (
    ("lost", ("lost",)),
    ("in two terminal states", ("two_terminal_states", "events_after_terminal")),
    ("wrong results", ("wrong_results", "result_writer_is_latest_holder")),
    ("sequence gaps or repeats without a gap event", ("sequences_dense", "watch_order", "watch_gaps_explained")),
    ("DLQ mismatches", ("failed_iff_dead_letter", "dead_letter_stream_agrees")),
)


def lines(outcome: Outcome) -> Iterator[str]:
    """The report, line by line."""
    yield ""
    yield f"scenario {outcome.scenario.name}, seed {outcome.seed}, {outcome.seconds:.0f} s"
    yield f"tasks submitted: {outcome.submitted}"
    yield f"faults injected: {sum(outcome.strikes.values())}"
    for name, count in sorted(outcome.strikes.items()):
        yield f"  {count:5} {name}"
    yield "counted (metrics are read once a second: a killed process takes its last second with it)"
    for name, count in outcome.counts.items():
        yield f"  {count:5} {name}"
    yield from _checks(outcome.findings)
    for problem in outcome.problems:
        yield f"problem: {problem}"
    yield ""
    yield ", ".join(f"{_violations(outcome.findings, names)} {what}" for what, names in SUMMARY)
    yield "GREEN" if outcome.is_green else "RED"


def how_to_repeat(outcome: Outcome, minutes: float, folder: Path, broken: str) -> Iterator[str]:
    """What to look at and to type after a red run."""
    name, nodes = outcome.scenario.name, outcome.scenario.nodes
    drawn = f"--minutes {minutes:g}" + (f" --nodes {nodes}" if nodes > 1 else "")
    chosen = drawn if name == MIXTURE else f"--scenario {name}"
    variant = f" --broken {broken}" if broken else ""
    yield f"histories, ledger, data and log are kept in {folder}"
    yield f"again: .venv/bin/python -m tests.faults {chosen} --seed {outcome.seed}{variant}"


def _checks(findings: Iterable[Finding]) -> Iterator[str]:
    yield f"{'':5} {'check':34} {'checked':>8} {'violations':>11}"
    for finding in findings:
        nothing = "  (nothing to check)" if finding.checked == 0 else ""
        yield f"{finding.promise:5} {finding.name:34} {finding.checked:8} {len(finding.violations):11}{nothing}"
        for violation in finding.violations[:SHOWN_VIOLATIONS]:
            yield f"        {violation}"
        if len(finding.violations) > SHOWN_VIOLATIONS:
            yield f"        … and {len(finding.violations) - SHOWN_VIOLATIONS} more"


def _violations(findings: Iterable[Finding], names: tuple[str, ...]) -> int:
    return sum(len(finding.violations) for finding in findings if finding.name in names)
