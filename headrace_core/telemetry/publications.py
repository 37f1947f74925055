"""The spans of publications: from the moment a message is sent to the broker's confirmation. Where traces are on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace_core.bus.publisher import PublishResult
    from headrace_core.tasks.model import Publication
    from headrace_core.telemetry.spans import Spans


def note_publications(
    spans: Spans, sent: Sequence[Publication], results: Sequence[PublishResult], began: float
) -> None:
    """A span for each publication that belongs to a trace. `began`: time.time() when the batch was sent."""
    start = int(began * 1e9)
    for item, result in zip(sent, results, strict=True):
        if item.trace_context is None or not spans.is_sampled(item.trace_context):
            continue
        attributes = {
            "messaging.system": "nats",
            "messaging.operation.name": "send",
            "messaging.destination.name": item.subject_suffix,
            "messaging.message.id": item.message_id,
            "messaging.batch.message_count": len(sent),
            "headrace.task_id": str(item.unit_id.task_id),
            "headrace.unit": item.unit_id.unit,
            "headrace.queue": item.queue,
        }
        span = spans.start(f"send {item.queue}", "client", attributes, item.trace_context, start_time=start)
        if not result.accepted:
            spans.fail(span, str(result.outcome))
        span.end()
