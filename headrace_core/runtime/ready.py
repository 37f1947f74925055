"""The ready file: how a parent process learns that a service serves, and on which ports."""

import json
import os
from pathlib import Path


def write_ready_file(path: Path, *, grpc: str | None, ops: str | None, http: str | None) -> None:
    """Write `{"grpc", "ops", "http", "pid"}` in one step: a reader sees all of it or no file."""
    content = json.dumps({"grpc": grpc, "ops": ops, "http": http, "pid": os.getpid()})
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(content + "\n", encoding="utf-8")
    unfinished.replace(path)


def remove_ready_file(path: Path) -> None:
    """Remove it, if it is there."""
    path.unlink(missing_ok=True)
