"""What keeps two releases working on one schema: how migrations are written, and that a released one never changes."""

import re
from pathlib import Path

import pytest

from headrace_core.db.migrate import available, migrate
from headrace_core.stack.schema import SCHEMA_FILE, dump
from tests.upgrade import older

LABEL = re.compile(r"\bLabel: (before|after) deploy\b")
# In a file labelled "before deploy" the old release still runs: what it reads and writes must stay.
TAKES_AWAY = re.compile(
    r"\b(drop\s+table|drop\s+view|drop\s+column|rename\s+(column|to)|drop\s+schema)\b", re.IGNORECASE
)
# The schema of 0001 was never released; its file says so.
EXEMPT = {"0002_reconciler"}


def test_migrations_are_numbered_without_a_hole() -> None:
    assert [int(version[:4]) for version in available()] == list(range(1, len(available()) + 1))


@pytest.mark.parametrize("version", available())
def test_each_migration_says_whether_it_comes_before_or_after_the_deploy(version: str) -> None:
    head = "".join(line for line in available()[version].splitlines()[:5] if line.startswith("--"))
    assert LABEL.search(head), f"{version}: its first lines must say `Label: before deploy` or `Label: after deploy`"


@pytest.mark.parametrize("version", sorted(set(available()) - EXEMPT))
def test_what_comes_before_the_deploy_takes_nothing_away_from_the_old_release(version: str) -> None:
    sql = available()[version]
    if "Label: before deploy" in sql:
        found = TAKES_AWAY.search(re.sub(r"--.*", "", sql))
        if found is not None:
            pytest.fail(f"{version}: `{found[0]}` belongs into a migration labelled after deploy")


def test_a_released_migration_is_never_changed() -> None:
    """Whoever has applied it would never get the change, and the next one would get another schema."""
    today = available()
    for commit in older.releases():
        for version, sql in older.migrations_of(commit).items():
            assert today.get(version) == sql, f"{version} differs from the one of {commit}: write a new migration"


async def test_the_older_schema_migrated_is_the_schema(old_schema_url: str, old_code: Path) -> None:
    new = [version for version in available() if version not in older.migrations(old_code)]
    assert await migrate(old_schema_url, after_deploy=True) == new
    assert await dump(old_schema_url) == SCHEMA_FILE.read_text(encoding="utf-8")
