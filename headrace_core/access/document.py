"""The table of docs/access.md, made from the code: `python -m headrace_core.access.document [path]`."""

import sys
from pathlib import Path

from headrace_core.access.table import TABLE, Row

BEGIN, END = (
    "<!-- begin of the table, made by: python -m headrace_core.access.document -->",
    "<!-- end of the table -->",
)


def table() -> str:
    """Every method, who may call it, and where the namespace is found."""
    lines = ["| method | role | in |", "|---|---|---|"]
    return "\n".join([*lines, *(_line(method, row) for method, row in TABLE.items())])


def renewed(page: str) -> str:
    """The page with the table as it is now. Raises ValueError if its place is not marked."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no place for the table: {BEGIN} … {END}")
    return f"{before}{begin}\n{table()}\n{end}{after}"


def _line(method: str, row: Row) -> str:
    return f"| `{method.removeprefix('headrace.v1.')}` | {' or '.join(row.roles) or 'none'} | {row.where} |"


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/access.md")
    place.write_text(renewed(place.read_text(encoding="utf-8")), encoding="utf-8")
