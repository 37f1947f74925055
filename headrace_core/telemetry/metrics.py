"""Every metric of the project, in one registry, so that a dashboard has one page to read and a name is used once.

Metrics are process-wide by nature: they are the one kind of global that the services share. Label values come from
small closed sets (declared queues and kinds, codes); never put an id or a text of a client into a label.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
RPC_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(f"headrace_{name}", documentation, labels, registry=REGISTRY)


def _gauge(name: str, documentation: str, *labels: str) -> Gauge:
    return Gauge(f"headrace_{name}", documentation, labels, registry=REGISTRY)


def _histogram(name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"headrace_{name}", documentation, labels, buckets=buckets, registry=REGISTRY)


# -- producer ---------------------------------------------------------------------------------------------------------
submitted_total = _counter("submitted_total", "Tasks accepted (committed), without repeated keys.", "kind", "queue")
submit_batch_size = _histogram("submit_batch_size", "Submits that shared one commit.", BATCH_SIZES)
published_total = _counter("published_total", "Messages stored in the stream of tasks.", "level")
republished_total = _counter("republished_total", "Publications repeated because the stream had lost the first.")
dead_messages_removed_total = _counter(
    "dead_messages_removed_total", "Messages removed that were never to be delivered."
)
retention_removed_total = _counter("retention_removed_total", "Rows removed because their time was over.", "what")
retention_overdue_seconds = _gauge(
    "retention_overdue_seconds", "How much too long the oldest that is to be removed has been kept.", "what"
)

# -- consumer ---------------------------------------------------------------------------------------------------------
claims_total = _counter("claims_total", "Units claimed; source is broker or postgres.", "source", "queue")
claim_refused_total = _counter("claim_refused_total", "Deliveries that were no claim, by what they met.", "verdict")
attempts_total = _counter("attempts_total", "Attempts that ended, by how.", "outcome")
settled_total = _counter("settled_total", "Settlements that were applied.", "settlement")
fenced_total = _counter("fenced_total", "Writes refused because the lease had gone to somebody else.")
renewals_lost_total = _counter("renewals_lost_total", "Leases found lost at their renewal.")
takeovers_total = _counter("takeovers_total", "Units taken from holders that no longer renewed.")

# -- events, dead letters ---------------------------------------------------------------------------------------------
events_written_total = _counter("events_written_total", "Events of tasks written to Postgres.")
wakes_published_total = _counter("wakes_published_total", "Live hints handed to the broker.")
wakes_dropped_total = _counter("wakes_dropped_total", "Live hints dropped because the broker was away.")
watchers = _gauge("watchers", "Open watches.")
watch_events_sent_total = _counter("watch_events_sent_total", "Events sent to watchers.")
dead_letters_total = _counter("dead_letters_total", "Dead letters written.", "reason")
dead_letters_repaired_total = _counter(
    "dead_letters_repaired_total", "Entries that the DLQ stream lacked, or had too many: published, removed.", "how"
)

# -- queues, from the status service: every replica shows the same, so take the greatest, never the sum ----------------
queue_backlog = _gauge("queue_backlog", "Units that are due and wait, also in a paused queue.", "queue")
queue_in_flight = _gauge("queue_in_flight", "Units held by a consumer.", "queue")
queue_work = _gauge(
    "queue_work", "Units that wait, unless the queue is paused, or are held: what consumers are scaled by.", "queue"
)
queue_delayed = _gauge("queue_delayed", "Units that wait and are not due yet.", "queue")
queue_oldest_age_seconds = _gauge("queue_oldest_age_seconds", "How long the oldest due unit has waited.", "queue")
queue_dead_letters = _gauge("queue_dead_letters", "Dead letters that are open.", "queue")

# -- every service ----------------------------------------------------------------------------------------------------
rpc_seconds = _histogram(
    "rpc_seconds", "How long RPCs took; a stream: how long it lived.", RPC_SECONDS, "method", "code"
)
mode = _gauge("mode", "How work travels: 1 for the mode in force (broker, fallback, postgres), else 0.", "mode")
background_restarts_total = _counter(
    "background_restarts_total", "Restarts of background tasks after a failure.", "name"
)
spans_dropped_total = _counter(
    "spans_dropped_total", "Spans of traces that were given up: the queue was full, or the collector did not take them."
)

MODES = ("broker", "fallback", "postgres")


def set_mode(current: str) -> None:
    """Show `current` (one of MODES) as the mode in force."""
    if current not in MODES:
        raise ValueError(f"no such mode: {current!r}; one of {', '.join(MODES)}")
    for name in MODES:
        mode.labels(name).set(1.0 if name == current else 0.0)


def exposition() -> bytes:
    """All metrics in the text format of Prometheus, of type CONTENT_TYPE."""
    return generate_latest(REGISTRY)
