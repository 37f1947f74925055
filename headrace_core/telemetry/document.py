"""`python -m headrace_core.telemetry.document docs/log-actions.md`: every action that a line of a log may have.

Found in the code, so that the list cannot be wrong; each with the words of its line and where it is said.
"""

from __future__ import annotations

import ast
import gc
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("headrace_core", "producer", "consumer", "status")
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
HEAD = """# Actions in the logs

Every line has an `action`, which programs and alerts may rely on: it keeps its meaning, texts may change. This list is
made from the code by `python -m headrace_core.telemetry.document docs/log-actions.md`; a test compares.

Lines that concern a unit also have `task`, `unit`, `namespace`, `queue`, `kind`, `attempt` and `epoch`.

No line, at any level, has a payload, a result, the text of a handler's exception, a label, an idempotency key, a token
or a password. Of an exception it has the types and the places.

| action | level | says | module |
|---|---|---|---|
"""


class Said(NamedTuple):
    """One call of a logger."""

    action: str
    level: str
    text: str
    module: str


def calls(root: Path, packages: Sequence[str] = PACKAGES) -> list[Said]:
    """Every call of a logger in the packages below `root`, in the order of its action."""
    paths = (path for package in packages for path in sorted((root / package).rglob("*.py")))
    return sorted(said for path in paths for said in _calls_in(path, root))


def document(root: Path) -> str:
    """The page."""
    rows = [f"| `{said.action}` | {said.level} | {said.text} | {said.module} |\n" for said in calls(root)]
    return HEAD + "".join(dict.fromkeys(rows))


def parsed(path: Path) -> ast.Module:
    """A module's syntax tree. The garbage collector rests meanwhile.

    A finalizer that parses something itself breaks the parser of Python 3.11 (CPython's issue 106905).
    """
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def _calls_in(path: Path, root: Path) -> Iterator[Said]:
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            action = next((keyword.value for keyword in node.keywords if keyword.arg == "action"), None)
            if action is not None:
                text = _text(node.args[0]) if node.args else ""
                level = "error" if node.func.attr == "exception" else node.func.attr
                for name in _choices(action):
                    yield Said(name, level, text.replace("|", "\\|"), module)


def _choices(node: ast.expr) -> list[str]:
    """The one, or both of `one if … else other`."""
    if isinstance(node, ast.IfExp):
        return [*_choices(node.body), *_choices(node.orelse)]
    return [_text(node)]


def _text(node: ast.expr) -> str:
    """A literal; of an f-string the literal parts, with dots for the others."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return "…"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(Path.cwd()), encoding="utf-8")
