"""Printing: protobuf's JSON for programs, tables and plain lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message


def write_line(text: str) -> None:
    """Write one line to standard output, and flush: whoever reads a pipe sees it now."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write one line for people to standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write_message(message: Message) -> None:
    """Write `message` in protobuf's JSON mapping as one compact line; zeros and empty lists are written too."""
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415 - not for --help

    text = MessageToJson(message, indent=None, ensure_ascii=False, always_print_fields_with_no_presence=True)
    write_line(json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")))


def write_json_text(text: bytes) -> None:
    """Write stored JSON as it is, digit for digit; only line breaks between its tokens are taken out."""
    stored = text.decode()
    # In valid JSON a raw line break can only stand between tokens.
    write_line(stored.replace("\r", " ").replace("\n", " "))


def write_indented(content: Any) -> None:
    """Write a JSON value for people."""
    write_line(json.dumps(content, ensure_ascii=False, indent=2))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table: with a frame on a terminal, tab-separated in a pipe."""
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            write_line("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    from rich.console import Console  # noqa: PLC0415 - only where somebody looks
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def write_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Write names and values in two columns; empty values are left out."""
    present = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in present), default=0)
    for name, value in present:
        write_line(f"{name:<{width}}  {value}")
