"""What was measured where: for the JSON file beside the figures."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from bench.peers.catalog import ROOT
from headrace_core.stack.binaries import nats_server, postgres_folder

QUESTION_SECONDS = 20


def versions() -> dict[str, str]:
    """Return the versions of Python, the servers that are there, the machine and this checkout."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "commit": _answer(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        "postgres": _answer([str(postgres_folder() / "postgres"), "--version"]),
        "nats-server": _answer([str(nats_server()), "--version"]),
    }
    if shutil.which("redis-server"):
        found["redis-server"] = _answer(["redis-server", "--version"])
    applications = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    if applications:
        found["rabbitmq-server"] = applications[-1].name
    return found


def _answer(command: list[str]) -> str:
    answered = subprocess.run(command, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=False)
    return (answered.stdout or answered.stderr).strip()
