"""The pages that name tests name tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("guarantees", "postgres", "backup", "upgrades")),
]
NAMED = re.compile(r"[`\[](test_\w+)[`\]]")
DEFINED = re.compile(r"def (test_\w+)\(")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    defined = {name for file in TESTS.rglob("test_*.py") for name in DEFINED.findall(file.read_text(encoding="utf-8"))}
    named = set(NAMED.findall(page.read_text(encoding="utf-8")))
    assert named, "the page names no test: is the pattern still right?"
    assert named - defined == set()
