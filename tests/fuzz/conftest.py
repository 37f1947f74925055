"""The summary of a run: how many inputs each target was tried with."""

import pytest

from tests.fuzz.trying import PROPERTY, SECONDS, SEED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each target. Also where the tests ran in other processes: the reports bring the numbers."""
    found = [
        (report.nodeid, value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY and report.when == "call"
    ]
    if not found:
        return
    terminalreporter.section(f"fuzzing (seed {SEED}, {SECONDS:g} s a target)" if SECONDS else "fuzzing")
    for node, value in sorted(found):
        terminalreporter.write_line(f"{value:7d} inputs  {node}")
    terminalreporter.write_line(f"{sum(value for _, value in found):7d} inputs in all")
