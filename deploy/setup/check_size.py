"""No module over 400 lines, no function over 60, generated code aside: what does not fit a screen is redesigned."""

import ast
import subprocess
import sys
from pathlib import Path

MODULE_LINES = 400
FUNCTION_LINES = 60


def complaints(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    found = [f"{path}: {lines} lines; a module has at most {MODULE_LINES}"] if lines > MODULE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                where = f"{path}:{node.lineno}"
                found.append(f"{where}: {node.name} has {length} lines; a function has at most {FUNCTION_LINES}")
    return found


def main() -> int:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    paths = [Path(name) for name in listed if not name.startswith("headrace/v1/") and Path(name).exists()]
    found = [complaint for path in paths for complaint in complaints(path)]
    sys.stderr.writelines(f"check-size: {complaint}\n" for complaint in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
