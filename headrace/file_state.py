"""Files that somebody replaces while we run: certificates and tokens, as Kubernetes and cert-manager rotate them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias, TypeVar

T = TypeVar("T")
State: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]
# A swap takes no time; whoever sees one three times running looks at something else.
TRIES = 3


def state_of(paths: Sequence[Path]) -> State:
    """What differs as soon as one of the files has been written or replaced, links followed. None: cannot be seen."""
    return tuple(_state(path) for path in paths)


def read_together(paths: Sequence[Path], read: Callable[[], T]) -> tuple[State, T]:
    """What `read` makes of the files, and their state: never one file from before a swap and one from after it.

    Raises what `read` raises, unless the files changed meanwhile: then they are read again.
    """
    for _ in range(TRIES - 1):
        before = state_of(paths)
        try:
            found = read()
        except (OSError, ValueError):
            if state_of(paths) == before:
                raise
            continue
        if state_of(paths) == before:
            return before, found
    return state_of(paths), read()


def _state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
