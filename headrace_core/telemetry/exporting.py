"""Finished spans on their way to a collector: a bounded queue and one thread. Nothing here may hold up a task.

Not the SDK's own batch processor: its flush knows no limit, and what it drops, and a collector that is away, are lines
in the log for each batch. Here the first are a metric, and the second is one line when it begins and one when it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from headrace_core.telemetry import logs, metrics

QUEUE_SIZE = 8192
BATCH_SIZE = 512
DELAY_SECONDS = 1.0

log = logs.get(__name__)


class Export(SpanProcessor):
    """Takes every sampled span at its end. `close` ends the thread; one that hangs in a call is left behind."""

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        queue_size: int = QUEUE_SIZE,
        batch_size: int = BATCH_SIZE,
        delay: float = DELAY_SECONDS,
    ) -> None:
        """`delay`: seconds that a span waits for others at most."""
        self._exporter = exporter
        self._queue: deque[ReadableSpan] = deque()
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._delay = delay
        self._wake = threading.Event()
        self._closing = False
        self._given_up = False
        self._refused = False
        self._complaints = _Complaints()
        self._thread = threading.Thread(target=self._live, name="trace-export", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Export:
        """With the endpoint, headers, certificates and time limit of OTEL_EXPORTER_OTLP_…, the bounds of OTEL_BSP_….

        Raises ValueError for a bound that is no number above 0, or what the exporter raises.
        """
        queue = _bound(environ, "OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SIZE)
        batch = _bound(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SIZE)
        delay = _bound(environ, "OTEL_BSP_SCHEDULE_DELAY", int(DELAY_SECONDS * 1000))
        return cls(OTLPSpanExporter(), queue_size=queue, batch_size=min(batch, queue), delay=delay / 1000)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it, or drop it where the queue is full. Never blocks."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._queue) >= self._queue_size or self._closing:
            metrics.spans_dropped_total.inc()
            return
        self._queue.append(span)
        if len(self._queue) >= self._batch_size:
            self._wake.set()

    def hurry(self) -> None:
        """Send what there is now, in the background."""
        self._wake.set()

    def close(self, within: float) -> None:
        """Send what there is, for at most `within` seconds. Blocks; idempotent."""
        self._closing = True
        self._wake.set()
        self._thread.join(within)
        self._given_up = True
        metrics.spans_dropped_total.inc(len(self._queue))
        self._exporter.shutdown()
        self._complaints.remove()

    def shutdown(self) -> None:
        """Of the provider; nobody calls it but a test's."""
        self.close(0.0)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait until the queue is empty; for a handler that insists. False after the time."""
        end = time.monotonic() + timeout_millis / 1000
        while self._queue and time.monotonic() < end:
            self._wake.set()
            time.sleep(0.01)
        return not self._queue

    def _live(self) -> None:
        while not self._closing:
            self._wake.wait(self._delay)
            self._wake.clear()
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while self._queue and not self._given_up:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_size))]
            self._note(len(batch), taken=self._send(batch))

    def _send(self, batch: list[ReadableSpan]) -> bool:
        try:
            return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - a span that cannot be encoded must not end the thread
            self._complaints.last = f"{type(error).__name__}: {error}"
            return False

    def _note(self, count: int, *, taken: bool) -> None:
        """One line for each change, not for each batch."""
        if not taken:
            metrics.spans_dropped_total.inc(count)
        if taken is not self._refused:
            return
        self._refused = not taken
        if taken:
            log.info("the collector takes spans again", action="traces.export_resumed")
        else:
            said = self._complaints.last
            log.warning("the collector takes no spans; they are dropped", action="traces.export_failed", error=said)


class _Complaints(logging.Handler):
    """Keeps the last line of the exporter, which would write one for each batch, instead of passing it on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._logger = logging.getLogger("opentelemetry.exporter")
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.last = record.getMessage()

    def remove(self) -> None:
        """Let the lines through again."""
        self._logger.removeHandler(self)
        self._logger.propagate = True


def _bound(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}; it must be a whole number above 0")
    return int(text)
