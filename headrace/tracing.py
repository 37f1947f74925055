"""The caller's trace goes along, where the application uses OpenTelemetry; nothing is imported where it does not.

The SDK depends on no library of OpenTelemetry. An application that traces has imported `opentelemetry.trace` itself:
then a submit is a span of its own, and every call carries `traceparent` and `tracestate` in its metadata.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Metadata = tuple[tuple[str, str], ...]


def metadata() -> Metadata | None:
    """What a call carries of the current context; None: there is none, or nobody traces."""
    api = sys.modules.get("opentelemetry.trace")
    return None if api is None else _metadata_of(api)


@contextmanager
def submitting(kind: str, namespace: str) -> Iterator[Callable[[int], None]]:
    """Around a submit, its repeats included: a span of the application's, current within.

    What is yielded takes the number of tasks, where it is not one.

    A failure is noted by its type. Its text is not: it may quote what was submitted.
    """
    api: Any = sys.modules.get("opentelemetry.trace")
    if not hasattr(api, "get_tracer"):  # it is not there, or just being imported by another thread
        yield _ignore
        return
    span = api.get_tracer("headrace").start_span(f"submit {kind}".rstrip(), kind=api.SpanKind.PRODUCER)
    span.set_attributes({"headrace.kind": kind, "headrace.namespace": namespace})
    try:
        with api.use_span(span, record_exception=False, set_status_on_exception=False):
            yield lambda count: span.set_attribute("headrace.task_count", count)
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(api.Status(api.StatusCode.ERROR))
        raise
    finally:
        span.end()


def _metadata_of(api: Any) -> Metadata | None:
    if not hasattr(api, "get_current_span"):
        return None
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"
    state = context.trace_state.to_header()
    return (("traceparent", parent), ("tracestate", state)) if state else (("traceparent", parent),)


def _ignore(_count: int) -> None:
    pass
