"""Named SQL statements, kept in .sql files beside the code that runs them.

A statement begins with a line `-- name: claim_units`; the comment lines after it say what it does.
"""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

_NAME = re.compile(r"^-- name: (\w+)[ \t]*$", re.MULTILINE)


def load(package: str, filename: str) -> Mapping[str, str]:
    """The statements of `package`/`filename` (`sql/claim.sql`) by name, without their comments.

    Raises:
        ValueError: two statements of one name, or text before the first name.
    """
    text = resources.files(package).joinpath(filename).read_text(encoding="utf-8")
    return parse(text, filename)


def parse(text: str, source: str) -> Mapping[str, str]:
    """Split the text of a .sql file into its named statements."""
    head, *parts = _NAME.split(text)
    if _strip_comments(head):
        raise ValueError(f"{source}: SQL before the first `-- name:` line")
    statements: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in statements:
            raise ValueError(f"{source}: two statements are named {name}")
        statements[name] = _strip_comments(body)
    return MappingProxyType(statements)


def _strip_comments(sql: str) -> str:
    lines = (line for line in sql.splitlines() if not line.lstrip().startswith("--"))
    return "\n".join(lines).strip().removesuffix(";").rstrip()
