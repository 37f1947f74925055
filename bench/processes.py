"""CPU time and memory of process trees, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from headrace_core.stack.dev import LocalStack

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def pids_of(stack: LocalStack) -> dict[str, int]:
    """The process of each part of a stack."""
    parts = {"postgres": stack.postgres.pid, "nats": stack.nats.pid}
    parts |= {name: service.pid for name, service in stack.services.items()}
    return {name: pid for name, pid in parts.items() if pid is not None}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all of its descendants since they started, those that have ended included."""
    return sum(_ticks(one) for one in tree(pid)) / TICKS_PER_SECOND


def rss_bytes(pid: int) -> int:
    """Resident memory of one process, shared pages included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def anonymous_bytes(pid: int) -> int:
    """Of the resident memory what belongs to no file: neither libraries nor mapped models."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    for one, parent in _parents():
        children.setdefault(parent, []).append(one)
    found = [pid]
    for one in found:  # grows while it is read
        found += children.get(one, [])
    return found


class CpuWatch:
    """CPU time of several process trees from now on."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}

    def used(self) -> dict[str, float]:
        """Seconds used so far, by name."""
        return {name: cpu_seconds(pid) - self._before[name] for name, pid in self._pids.items()}


class OthersWatch:
    """How many cores programs other than this benchmark have used on this machine since now."""

    def __init__(self) -> None:
        self._before = self._others()
        self._started = time.monotonic()

    def cores(self) -> float:
        """Cores, on average."""
        return max(0.0, (self._others() - self._before) / (time.monotonic() - self._started))

    @staticmethod
    def _others() -> float:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _idle, _wait, irq, softirq = (int(field) for field in fields[:7])
        return (user + nice + system + irq + softirq) / TICKS_PER_SECOND - cpu_seconds(os.getpid())


def cpu_per_task(used: Mapping[str, float], tasks: int, name: str) -> dict[str, float]:
    """CPU time in microseconds per task: `cpu_NAME` of all, `cpu_NAME_PART` of each."""
    parts = {f"cpu_{name}_{part}": seconds / tasks * 1e6 for part, seconds in used.items()}
    return {f"cpu_{name}": sum(parts.values()), **parts}


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                yield int(entry.name), int(fields[1])


def _ticks(pid: int) -> int:
    fields = _stat(pid)
    return sum(int(field) for field in fields[11:15])  # utime, stime, and those of waited-for children


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from `state` on; empty for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything
