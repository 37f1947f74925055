"""What a run ran on: versions, settings read from the live servers, what else kept the machine busy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from bench.measure import Scope
from bench.references.nats_wire import Wire
from bench.servers import ROOT, servers

PACKAGES = ("grpcio", "protobuf", "nats-py", "psycopg", "psycopg-binary", "uvloop", "pydantic", "jsonschema-rs")
SETTINGS = (
    "synchronous_commit",
    "fsync",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "max_connections",
)
GIT_SECONDS = 10


async def environment(scope: Scope) -> dict[str, Any]:
    """Versions and settings. Starts the servers once, to ask them."""
    return {
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "machine": _machine(),
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain"))},
        "headrace_variables": {name: value for name, value in os.environ.items() if name.startswith("HEADRACE_")},
        **await _servers(scope),
    }


def load() -> dict[str, float]:
    """How busy the machine is, by everybody: before the first round that is the others."""
    one, five, fifteen = os.getloadavg()
    return {"1min": one, "5min": five, "15min": fifteen}


def _machine() -> dict[str, Any]:
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "memory_kb": int(memory[0].split()[1]) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
    }


async def _servers(scope: Scope) -> dict[str, Any]:
    async with servers(scope) as where:
        async with await psycopg.AsyncConnection.connect(where.database_url) as connection:
            found = await connection.execute(
                "select name, current_setting(name) from unnest(%s::text[]) as name", [list(SETTINGS)]
            )
            settings: dict[str, str] = dict(await found.fetchall())
            version = connection.info.server_version
        wire = await Wire.connect(where.nats_url)
        info = wire.server
        wire.close()
    return {
        "postgres": {"version": f"{version // 10000}.{version % 10000}", **settings},
        "nats": {"version": info.get("version")},
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    return found.stdout.strip()
