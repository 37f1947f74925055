"""Processes of a server, found in /proc: freezing Postgres means the postmaster and every backend."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def send_to_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all of its descendants, the process itself first so that it forks no more.

    Its children are looked for twice: a killed process has none, one that was not yet stopped may have got one more.
    """
    before = _children(pid)
    _send(pid, number)
    for child in before | _children(pid):
        send_to_tree(child, number)


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for thread in _threads(pid):
        try:
            found |= {int(child) for child in (thread / "children").read_text().split()}
        except OSError:
            continue  # the thread ended meanwhile
    return found


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []  # the process ended meanwhile


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended meanwhile


def is_alive(pid: int) -> bool:
    """Whether the process exists and has not ended; one that nobody has waited for yet has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
