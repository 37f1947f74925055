"""Actions of log lines: documented, well formed, and each means one thing."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from headrace_core.telemetry.document import LEVELS, PACKAGES, calls, document, parsed

ROOT = Path(__file__).resolve().parents[2]
FORM = re.compile(r"[a-z_…]+(\.[a-z_…]+)*")
# Said where two parts meet the same thing, in the same meaning.
SHARED: set[str] = set()


def test_the_list_of_actions_is_fresh() -> None:
    found = (ROOT / "docs/log-actions.md").read_text(encoding="utf-8")
    assert found == document(ROOT), "run: python -m headrace_core.telemetry.document docs/log-actions.md"


def test_every_line_has_an_action_of_the_form_that_programs_expect() -> None:
    assert not [said for said in calls(ROOT) if not FORM.fullmatch(said.action)]


def test_an_action_is_said_by_one_module() -> None:
    modules: dict[str, set[str]] = defaultdict(set)
    for said in calls(ROOT):
        modules[said.action].add(said.module)
    assert not {action: found for action, found in modules.items() if len(found) > 1 and action not in SHARED}


def test_no_line_is_without_an_action() -> None:
    found = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(parsed(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            is_log = isinstance(node.func.value, ast.Name) and node.func.value.id in ("log", "_log")
            named = any(keyword.arg == "action" for keyword in node.keywords)
            if is_log and node.func.attr in LEVELS and not named:
                found.append(f"{path}:{node.lineno}")
    assert not found
