"""docs/configuration.md is what the settings say today."""

from pathlib import Path

from headrace_core.access import document as access_document
from headrace_core.access.table import TABLE
from headrace_core.settings.document import document
from headrace_core.settings.environment import VARIABLES

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_table_of_access_is_fresh() -> None:
    page = (PAGE.parent / "access.md").read_text(encoding="utf-8")
    assert page == access_document.renewed(page), "run: python -m headrace_core.access.document"
    assert all(f"`{method.removeprefix('headrace.v1.')}`" in page for method in TABLE)


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), (
        "run: python -m headrace_core.settings.document docs/configuration.md"
    )


def test_every_setting_says_what_it_means() -> None:
    page = document()
    assert "| None |" not in page
    assert all(f"`{variable}`" in page for variable in VARIABLES)
