"""Deliberately broken services on real servers: every variant is caught, and without it the same story is clean.

About four minutes on two cores, so it runs only when it is asked for: `make faults-checker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.broken.drills import CASES
from tests.faults.broken.stage import rehearse
from tests.faults.broken.variants import VARIANTS
from tests.faults.model import Finding

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


def fired(findings: Sequence[Finding]) -> dict[str, tuple[str, ...]]:
    return {finding.name: finding.violations for finding in findings if finding.violations}


def test_every_variant_has_its_drill() -> None:
    assert CASES.keys() == VARIANTS.keys()


async def test_without_a_variant_every_drill_is_clean(tmp_path: Path) -> None:
    findings = await rehearse(tmp_path, *(case.drill for case in CASES.values()))
    assert fired(findings) == {}
    watched = {name for case in CASES.values() for name in case.caught_by}
    assert {finding.name for finding in findings if finding.checked == 0} & watched == set()


@pytest.mark.parametrize("variant", CASES)
async def test_a_broken_variant_is_caught(variant: str, tmp_path: Path) -> None:
    case = CASES[variant]
    found = fired(await rehearse(tmp_path, case.drill, broken=variant))
    assert set(case.caught_by) <= found.keys()
