"""The variants fit the product as it is: a text that has moved on is noticed here, without a stack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATH = os.pathsep.join([str(HERE / "broken"), str(HERE.parents[1])])
MAKE_ALL = "from tests.faults.broken.variants import VARIANTS\nfor variant in VARIANTS.values(): variant()"


def python(*arguments: str, broken: str = "") -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"PYTHONPATH": PATH, "FAULTS_BROKEN": broken}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=False)


def test_every_variant_can_be_made() -> None:
    answer = python("-c", MAKE_ALL)
    assert answer.returncode == 0, answer.stderr


def test_a_service_becomes_the_variant_before_it_starts() -> None:
    look = "from headrace_core.tasks.settle import _SQL; print('holder = i.holder' in _SQL['complete_tasks'])"
    assert python("-c", look, "consumer", broken="unfenced_write").stdout.strip() == "False"
    assert python("-c", look, "consumer").stdout.strip() == "True"


def test_a_variant_that_cannot_be_made_ends_the_service_and_says_why() -> None:
    answer = python("-c", "print('unbroken')", "consumer", broken="no_such_variant")
    assert answer.returncode != 0
    assert "unbroken" not in answer.stdout
    assert "the variant no_such_variant cannot be made" in answer.stderr
