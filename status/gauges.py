"""The figures of the queues as gauges, for dashboards, alerts and an autoscaler that reads Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from headrace_core.errors import DatabaseUnavailable
from headrace_core.tasks.figures import Figures, SharedReading
from headrace_core.tasks.queues import QueueFigures
from headrace_core.tasks.scaling import QueueWork
from headrace_core.telemetry import logs, metrics
from status.limits import ScalingLimits

GAUGES = (
    metrics.queue_backlog,
    metrics.queue_in_flight,
    metrics.queue_work,
    metrics.queue_delayed,
    metrics.queue_oldest_age_seconds,
    metrics.queue_dead_letters,
)

log = logs.get(__name__)


class QueueGauges:
    """Renews the gauges. One for the process; `run` must be running."""

    def __init__(self, figures: Figures, work: SharedReading[dict[str, QueueWork]], limits: ScalingLimits) -> None:
        self._figures = figures
        self._work = work
        self._limits = limits
        self._shown: set[str] = set()

    async def run(self) -> None:
        """Renew them until cancelled; then they are removed, as are those that could not be renewed for long."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        try:
            while True:
                try:
                    self._show(await self._figures.all(), await self._work.latest())
                    renewed = loop.time()
                except DatabaseUnavailable as error:
                    if self._shown and loop.time() - renewed >= self._limits.gauges_last:
                        log.warning(
                            "the gauges of the queues are removed: Postgres has not answered for long",
                            action="gauges.removed",
                            error=error.message,
                        )
                        self._remove(self._shown)
                await asyncio.sleep(self._limits.gauges)
        finally:
            self._remove(self._shown)

    def _show(self, figures: list[QueueFigures], work: Mapping[str, QueueWork]) -> None:
        names = {queue.settings.name for queue in figures}
        self._remove(self._shown - names)
        for queue in figures:
            _set(queue, work.get(queue.settings.name, QueueWork(queue.settings.name)))
        self._shown = names

    def _remove(self, names: set[str]) -> None:
        """No series at all, rather than NaN, which would spread: without a figure an autoscaler leaves all as it is."""
        for gauge in GAUGES:
            for name in names:
                gauge.remove(name)
        self._shown = self._shown - names


def _set(queue: QueueFigures, work: QueueWork) -> None:
    name = queue.settings.name
    metrics.queue_backlog.labels(name).set(queue.backlog)
    metrics.queue_in_flight.labels(name).set(work.held)
    metrics.queue_work.labels(name).set(work.work)
    metrics.queue_delayed.labels(name).set(queue.delayed)
    metrics.queue_oldest_age_seconds.labels(name).set(queue.oldest_age)
    metrics.queue_dead_letters.labels(name).set(queue.dead_letters)
