"""What the handlers of the end-to-end tests are told and tell through files."""

import os
from pathlib import Path


def lines_of(ledger: Path) -> list[str]:
    """What the handlers noted so far."""
    return ledger.read_text(encoding="utf-8").splitlines()


def touch(path: Path) -> None:
    """Create a file: the signal that handlers wait for."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
