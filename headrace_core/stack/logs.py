"""One log for the whole stack: every line of every child, prefixed by its name, to a file and to a stream."""

import sys
import threading
from pathlib import Path
from typing import TextIO

MAX_LOG_BYTES = 64 * 1024 * 1024


class StackLog:
    """Appends lines to `path` and echoes them; the file before this one is kept as `<name>.1`.

    Safe to call from several threads. A stream that nobody reads any more is dropped and noted in the file: a
    closed terminal must not stop the stack.
    """

    def __init__(self, path: Path, echo: TextIO | None = None, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._echo = echo
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")

    def line(self, name: str, text: str) -> None:
        """Write one line of the part called `name`."""
        with self._lock:
            if self._file.closed:
                return
            self._write(f"{name:<10} | {text}\n")

    def close(self) -> None:
        """Close the file; later lines are dropped."""
        with self._lock:
            self._file.close()

    def _write(self, text: str) -> None:
        if self._file.tell() > self._max_bytes:
            self._rotate()
        self._file.write(text)
        self._file.flush()
        if self._echo is not None:
            self._echo_or_drop(self._echo, text)

    def _echo_or_drop(self, echo: TextIO, text: str) -> None:
        try:
            echo.write(text)
            echo.flush()
        except (OSError, ValueError) as error:
            self._echo = None
            self._file.write(f"{'stack':<10} | log stream is gone ({error}); this file goes on\n")

    def _rotate(self) -> None:
        self._file.close()
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")


def standard_error_log(path: Path) -> StackLog:
    """Return the log of `headrace dev`: the file and standard error."""
    return StackLog(path, sys.stderr)
