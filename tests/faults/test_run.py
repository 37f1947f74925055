"""The runner itself, on a real stack: green where nothing is broken, red where something is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.report import lines
from tests.faults.run import run
from tests.faults.scenarios import SCENARIOS
from tests.faults.schedule import Strike

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300), pytest.mark.leaks_ok("the stack ends with the run")]
SHORT = replace(SCENARIOS["calm"], seconds=8.0, strikes=(Strike(2.0, "kill", "consumer-1", 0.5),))


async def test_a_short_run_with_a_fault_is_green_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    outcome = await run(SHORT, 1, tmp_path, said.append)
    report = list(lines(outcome))
    assert outcome.is_green, report
    assert outcome.strikes == {"kill consumer-1": 1}
    assert report[-1] == "GREEN"
    assert report[-2].startswith("0 lost, 0 in two terminal states, 0 wrong results, 0 sequence gaps")


async def test_a_run_of_broken_services_is_red(tmp_path: Path) -> None:
    outcome = await run(SHORT, 1, tmp_path, lambda _line: None, broken="doubled_event")
    assert not outcome.is_green
    assert {finding.name for finding in outcome.findings if finding.violations}
