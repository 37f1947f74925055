"""Every metric of the project, in one registry, so that a dashboard has one page to read and a name is used once.

Metrics are process-wide by nature: they are the one kind of global that the services share. Label values come from
small closed sets (declared queues and kinds, codes); never put an id or a text of a client into a label.
`headrace_core.telemetry.catalogue` makes the table of docs/monitoring.md of what stands here.
"""

from __future__ import annotations

import bisect
import math
import platform
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

import headrace

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RPC_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
# From a task that finds a free consumer to one that takes a night.
TASK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 36000)
INFERENCE_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120)

PRODUCER, CONSUMER, STATUS, EVERY = "producer", "consumer", "status", "every service"


class Described(NamedTuple):
    """A metric and the services in which it moves; the others show it as 0, or not at all."""

    metric: Counter | Gauge | Histogram
    moved_by: tuple[str, ...]


CATALOGUE: list[Described] = []
"""Every metric of ours, in the order of this module."""


class BatchHistogram(Histogram):
    """A histogram that takes a whole batch at once: 0.2 µs for each value in place of 1.5."""

    def observe_many(self, values: Collection[float]) -> None:
        """As `observe` for each of the values. Seconds below 0 (two clocks) count as 0."""
        counts = [0] * len(self._buckets)
        for value in values:
            counts[bisect.bisect_left(self._upper_bounds, value)] += 1
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(math.fsum(value for value in values if value > 0))


def _counter(name: str, documentation: str, *labels: str, by: tuple[str, ...] = (EVERY,)) -> Counter:
    counter = Counter(f"headrace_{name}", documentation, labels, registry=REGISTRY)
    CATALOGUE.append(Described(counter, by))
    return counter


def _gauge(name: str, documentation: str, *labels: str, by: tuple[str, ...] = (EVERY,)) -> Gauge:
    gauge = Gauge(f"headrace_{name}", documentation, labels, registry=REGISTRY)
    CATALOGUE.append(Described(gauge, by))
    return gauge


def _histogram(
    name: str, documentation: str, buckets: tuple[float, ...], *labels: str, by: tuple[str, ...] = (EVERY,)
) -> BatchHistogram:
    histogram = BatchHistogram(f"headrace_{name}", documentation, labels, buckets=buckets, registry=REGISTRY)
    CATALOGUE.append(Described(histogram, by))
    return histogram


# -- producer ---------------------------------------------------------------------------------------------------------
submitted_total = _counter(
    "submitted_total", "Tasks accepted (committed), without repeated keys.", "kind", "queue", by=(PRODUCER,)
)
submits_repeated_total = _counter(
    "submits_repeated_total",
    "Submits answered with the task that their idempotency key had brought before.",
    "kind",
    "queue",
    by=(PRODUCER,),
)
submits_refused_total = _counter(
    "submits_refused_total",
    "Tasks that were not accepted, by reason; the queue only where it is full, else empty.",
    "reason",
    "queue",
    by=(PRODUCER,),
)
submit_batch_size = _histogram("submit_batch_size", "Submits that shared one commit.", BATCH_SIZES, by=(PRODUCER,))
publish_batch_size = _histogram(
    "publish_batch_size", "Messages published together.", BATCH_SIZES, by=(PRODUCER, CONSUMER)
)
published_total = _counter(
    "published_total", "Messages stored in the stream of tasks.", "level", by=(PRODUCER, CONSUMER)
)
relay_lag_seconds = _histogram(
    "relay_lag_seconds",
    "How long due work waited unpublished: sweep: from due until the sweep found it; queue: from there, or from the"
    " commit, until the stream had stored it.",
    TASK_SECONDS,
    "path",
    by=(PRODUCER,),
)
republished_total = _counter(
    "republished_total", "Publications repeated because the stream had lost the first.", by=(PRODUCER,)
)
dead_messages_removed_total = _counter(
    "dead_messages_removed_total", "Messages removed that were never to be delivered.", by=(PRODUCER,)
)
takeovers_total = _counter(
    "takeovers_total", "Units taken from holders that no longer renewed, or were seen to die.", by=(PRODUCER,)
)
retention_removed_total = _counter(
    "retention_removed_total", "Rows removed because their time was over.", "what", by=(PRODUCER,)
)
retention_overdue_seconds = _gauge(
    "retention_overdue_seconds",
    "How much too long the oldest that is to be removed has been kept.",
    "what",
    by=(PRODUCER,),
)

# -- consumer ---------------------------------------------------------------------------------------------------------
claims_total = _counter(
    "claims_total", "Units claimed; source is broker or postgres.", "source", "queue", by=(CONSUMER,)
)
claim_batch_size = _histogram("claim_batch_size", "Units claimed together.", BATCH_SIZES, by=(CONSUMER,))
claim_refused_total = _counter(
    "claim_refused_total", "Deliveries that were no claim, by what they met.", "verdict", by=(CONSUMER,)
)
wait_seconds = _histogram(
    "wait_seconds", "How long units had been due when they were claimed.", TASK_SECONDS, "queue", by=(CONSUMER,)
)
run_seconds = _histogram(
    "run_seconds",
    "How long attempts ran, from their claim until their handlers had ended.",
    TASK_SECONDS,
    "queue",
    "outcome",
    by=(CONSUMER,),
)
task_seconds = _histogram(
    "task_seconds",
    "How long tasks took, from their creation (or run_at) to their end; not those that were redriven.",
    TASK_SECONDS,
    "queue",
    "state",
    by=(CONSUMER, PRODUCER),
)
attempts_total = _counter("attempts_total", "Attempts that ended, by how.", "outcome", by=(CONSUMER,))
attempts_charged_total = _counter(
    "attempts_charged_total",
    "Attempts that did not complete, by the budget that was charged and what follows: retry, failed.",
    "budget",
    "follows",
    by=(CONSUMER, PRODUCER),
)
settle_batch_size = _histogram("settle_batch_size", "Settlements that shared one commit.", BATCH_SIZES, by=(CONSUMER,))
settled_total = _counter("settled_total", "Settlements that were applied.", "settlement", by=(CONSUMER,))
fenced_total = _counter(
    "fenced_total", "Settlements and checkpoints refused because the lease had gone to somebody else.", by=(CONSUMER,)
)
renewals_lost_total = _counter("renewals_lost_total", "Leases found lost at their renewal.", by=(CONSUMER,))
mode = _gauge(
    "mode", "How work travels: 1 for the mode in force (broker, fallback, postgres), else 0.", "mode", by=(CONSUMER,)
)
inference_seconds = _histogram(
    "inference_seconds",
    "How long inferences of ai.analyze took; their count is that of the calls.",
    INFERENCE_SECONDS,
    "backend",
    "outcome",
    by=(CONSUMER,),
)
inference_tokens_total = _counter(
    "inference_tokens_total",
    "Tokens that the inference server has billed; direction is prompt or completion.",
    "direction",
    by=(CONSUMER,),
)
inference_cost_total = _counter(
    "inference_cost_total",
    "What these tokens cost, in the currency of HEADRACE_AI_PROMPT_PRICE and HEADRACE_AI_COMPLETION_PRICE.",
    by=(CONSUMER,),
)

# -- events, dead letters ---------------------------------------------------------------------------------------------
events_written_total = _counter(
    "events_written_total", "Progress and output of handlers, written as events.", by=(CONSUMER,)
)
wakes_published_total = _counter("wakes_published_total", "Live hints handed to the broker.", by=(PRODUCER, CONSUMER))
wakes_dropped_total = _counter(
    "wakes_dropped_total",
    "Live hints dropped because the broker was away, or too many waited.",
    by=(PRODUCER, CONSUMER),
)
wakes_received_total = _counter("wakes_received_total", "Live hints that came from the broker.", by=(STATUS,))
watchers = _gauge("watchers", "Open watches.", by=(STATUS,))
watched_tasks = _gauge("watched_tasks", "Tasks that are watched.", by=(STATUS,))
watch_buffered_bytes = _gauge("watch_buffered_bytes", "Size of the events that wait for watchers.", by=(STATUS,))
watch_events_sent_total = _counter("watch_events_sent_total", "Events sent to watchers.", by=(STATUS,))
watch_gaps_total = _counter(
    "watch_gaps_total", "Gaps shown to watchers: retention was faster, or they were too slow.", "cause", by=(STATUS,)
)
dead_letters_total = _counter("dead_letters_total", "Dead letters written.", "reason", by=(CONSUMER, PRODUCER))
dead_letters_repaired_total = _counter(
    "dead_letters_repaired_total",
    "Entries that the DLQ stream lacked, or had too many: published, removed.",
    "how",
    by=(PRODUCER,),
)
for _how in ("published", "removed"):
    dead_letters_repaired_total.labels(_how)  # 0 from the start: of a series that begins with 1 no query sees it grow

# -- queues, from the status service: every replica shows the same, so take the greatest, never the sum ----------------
queue_backlog = _gauge("queue_backlog", "Units that are due and wait, also in a paused queue.", "queue", by=(STATUS,))
queue_in_flight = _gauge("queue_in_flight", "Units held by a consumer.", "queue", by=(STATUS,))
queue_work = _gauge(
    "queue_work",
    "Units that wait, unless the queue is paused, or are held: what consumers are scaled by.",
    "queue",
    by=(STATUS,),
)
queue_delayed = _gauge("queue_delayed", "Units that wait and are not due yet.", "queue", by=(STATUS,))
queue_oldest_age_seconds = _gauge(
    "queue_oldest_age_seconds", "How long the oldest due unit has waited.", "queue", by=(STATUS,)
)
queue_dead_letters = _gauge("queue_dead_letters", "Dead letters that are open.", "queue", by=(STATUS,))

# -- every service ----------------------------------------------------------------------------------------------------
rpc_seconds = _histogram(
    "rpc_seconds",
    "How long RPCs took; a stream: how long it lived.",
    RPC_SECONDS,
    "method",
    "code",
    by=(PRODUCER, STATUS),
)
ready = _gauge("ready", "1 if /readyz says so, else 0.")
db_connections = _gauge("db_connections", "Connections to Postgres; state is busy or idle.", "state")
db_waiting = _gauge("db_waiting", "Statements that wait for a connection.")
db_shortage = _gauge("db_shortage", "Above 0 if Postgres ran out of something in the last 15 s: disk, connections.")
broker_up = _gauge("broker_up", "1 if it is of use, else 0; part is connection or jetstream.", "part")
background_restarts_total = _counter(
    "background_restarts_total", "Restarts of background tasks after a failure.", "name"
)
spans_dropped_total = _counter(
    "spans_dropped_total", "Spans of traces that were given up: the queue was full, or the collector did not take them."
)
build_info = _gauge(
    "build_info", "1, with the service, its release, and that of Python.", "service", "version", "python"
)

MODES = ("broker", "fallback", "postgres")


def set_service(name: str) -> None:
    """Show which service this process is."""
    build_info.labels(name, headrace.__version__, platform.python_version()).set(1)


def set_mode(current: str) -> None:
    """Show `current` (one of MODES) as the mode in force."""
    if current not in MODES:
        raise ValueError(f"no such mode: {current!r}; one of {', '.join(MODES)}")
    for name in MODES:
        mode.labels(name).set(1.0 if name == current else 0.0)


# -- figures that somebody has and nobody reports ---------------------------------------------------------------------
Figures = Iterable[tuple[Gauge, float]]
_sources: dict[object, Callable[[], Figures]] = {}


def show(source: Callable[[], Figures]) -> Callable[[], None]:
    """Ask `source` at each reading what its gauges are, added up over all sources; returns how to end that.

    For what changes all the time and has its figure at hand, such as a pool. `source` must not block or raise.
    """
    key = object()
    _sources[key] = source
    return lambda: _sources.pop(key, None) and None


def _ask_sources() -> None:
    sums: dict[Gauge, float] = dict.fromkeys(_asked, 0.0)
    for source in list(_sources.values()):
        for gauge, value in source():
            sums[gauge] = sums.get(gauge, 0.0) + value
    for gauge, value in sums.items():
        gauge.set(value)
        _asked[gauge] = None


_asked: dict[Gauge, None] = {}
"""What has been shown before: it is 0 once its sources have gone."""


def exposition() -> bytes:
    """All metrics in the text format of Prometheus, of type CONTENT_TYPE."""
    _ask_sources()
    return generate_latest(REGISTRY)
