"""One log for the whole stack: every line of every child, prefixed by its name, to a file and to a stream."""

import sys
import threading
from pathlib import Path
from typing import TextIO

MAX_LOG_BYTES = 64 * 1024 * 1024


class StackLog:
    """Appends lines to `path` and echoes them; the file before this one is kept as `<name>.1`.

    Safe to call from several threads. A stream that nobody reads any more is dropped and noted in the file: a
    closed terminal must not stop the stack. Neither must a full disk: its lines are dropped and counted, for whoever
    stops reading the output of a child stops the child.
    """

    def __init__(self, path: Path, echo: TextIO | None = None, max_bytes: int = MAX_LOG_BYTES) -> None:
        self._path = path
        self._echo = echo
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._file = path.open("ab", buffering=0)
        self._dropped = 0

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
        self._store(text)
        if self._echo is not None:
            self._echo_or_drop(self._echo, text)

    def _store(self, text: str) -> None:
        try:
            if self._file.tell() > self._max_bytes:
                self._rotate()
            if self._dropped:
                self._file.write(f"{'stack':<10} | {self._dropped} lines could not be written here\n".encode())
                self._dropped = 0
            self._file.write(text.encode("utf-8", "backslashreplace"))
        except OSError:
            self._dropped += 1

    def _echo_or_drop(self, echo: TextIO, text: str) -> None:
        try:
            echo.write(text)
            echo.flush()
        except (OSError, ValueError) as error:
            self._echo = None
            self._store(f"{'stack':<10} | log stream is gone ({error}); this file goes on\n")

    def _rotate(self) -> None:
        # Under the new name it is still written to until the new file is open.
        self._path.replace(self._path.with_name(self._path.name + ".1"))
        fresh = self._path.open("ab", buffering=0)
        self._file.close()
        self._file = fresh


def standard_error_log(path: Path) -> StackLog:
    """Return the log of `headrace dev`: the file and standard error."""
    return StackLog(path, sys.stderr)
