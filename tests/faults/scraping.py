"""Counters of processes that come and go: the sum of everything that any of them has counted, as far as it was seen."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections import defaultdict
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from headrace_core.stack.dev import LocalStack
from tests.faults.recording import History

ANSWER_SECONDS = 1.0
PAUSE = 1.0
Sample = tuple[str, tuple[tuple[str, str], ...]]


class Counters:
    """Reads /metrics of every service once a second. What a process counts in its last second before a kill is lost."""

    def __init__(self, stack: LocalStack, history: History) -> None:
        """`history` is where `note` writes what every process has counted."""
        self.totals: dict[str, float] = defaultdict(float)
        """Metric (with its labels' values after a slash) → sum over all processes."""
        self._stack = stack
        self._history = history
        self._last: dict[str, dict[Sample, float]] = {}

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(PAUSE)

    async def read(self) -> None:
        """Read every service once; one that does not answer is left out."""
        addresses = {name: service.addresses.ops for name, service in self._stack.services.items()}
        await asyncio.gather(*(self._read(name, ops) for name, ops in addresses.items() if ops is not None))

    def note(self) -> None:
        """Write down the last value of each counter of each process, labels added up."""
        for process, samples in self._last.items():
            values: dict[str, float] = defaultdict(float)
            for (metric, _), value in samples.items():
                values[metric] += value
            for metric, value in values.items():
                self._history.note("metric", process=process, name=metric, value=value)

    async def _read(self, service: str, address: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            started, samples = parsed(await asyncio.to_thread(_get, address))
            self._add(f"{service}/{started}", samples)

    def _add(self, process: str, samples: Mapping[Sample, float]) -> None:
        before = self._last.get(process, {})
        for (metric, labels), value in samples.items():
            total = "/".join((metric, *(text for _, text in labels)))
            self.totals[total] += max(value - before.get((metric, labels), 0.0), 0.0)
        self._last[process] = dict(samples)

    def sum_of(self, metric: str, *labels: str) -> int:
        """The sum of a counter; with `labels`, of the series with one of these values."""
        found = [value for name, value in self.totals.items() if _matches(name, metric, labels)]
        return round(sum(found))


def parsed(text: str) -> tuple[float, dict[Sample, float]]:
    """When the process started, which tells it from the one before on the same port, and all counters of Headrace."""
    started, counters = 0.0, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "process_start_time_seconds":
                started = sample.value
            elif sample.name.startswith("headrace_") and sample.name.endswith("_total"):
                counters[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return started, counters


def _matches(name: str, metric: str, labels: tuple[str, ...]) -> bool:
    first, *values = name.split("/")
    return first == f"headrace_{metric}" and (not labels or bool(set(values) & set(labels)))


def _get(address: str) -> str:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
