"""What a run writes down while it happens: JSON lines, appended and flushed, so that a kill costs one line at most."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, TextIO

FOLDER_VARIABLE = "FAULTS_LEDGER"
WORKER_MODULE = "consumer.execution.worker"


class History:
    """What one client did and was told, in `folder`/`client`.jsonl."""

    def __init__(self, folder: Path, client: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._client = client
        self._file: TextIO = (folder / f"{client}.jsonl").open("a", encoding="utf-8")

    def note(self, what: str, **fields: Any) -> None:
        """Write one record; `at` (seconds since 1970) and `client` are added."""
        self._file.write(_line({"at": time.time(), "client": self._client, "what": what} | fields))
        self._file.flush()

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


class Ledger:
    """What handlers did, from inside. One file for each process, one write for each line: threads cannot mix them."""

    def __init__(self, folder: Path) -> None:
        """Opened at once: threads that open it at their first line would race for the descriptor."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @classmethod
    def from_environment(cls) -> Ledger:
        """The ledger in FAULTS_LEDGER, one for each process."""
        return _ledger(os.environ[FOLDER_VARIABLE])

    def note(self, what: str, ctx: Any, **fields: Any) -> None:
        """Write one record about the attempt of `ctx`. `phase="plan"` or `phase="merge"` tells those two apart."""
        about = {
            "at": time.time(),
            "pid": os.getpid(),
            "worker": worker(),
            "what": what,
            "task": ctx.task_id,
            "epoch": ctx.epoch,
            "attempt": ctx.attempt,
            "shard": ctx.shard_index,
        }
        os.write(self._descriptor, _line(about | fields).encode())


@cache
def _ledger(folder: str) -> Ledger:
    return Ledger(Path(folder))


def worker() -> str:
    """The name under which this process's consumer stands in the rows."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    consumer = os.getppid() if getattr(spec, "name", "") == WORKER_MODULE else os.getpid()
    return f"{socket.gethostname()}/{consumer}"


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
