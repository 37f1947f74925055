"""Spans as Headrace makes them, and trace contexts as text. Imported only where traces are on (see `tracing`).

Names follow OpenTelemetry's conventions for RPC and messaging: an operation, then what it works on, both from small
sets. Attributes are ids, names and numbers; never a payload, a result, or the text of an error.
"""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import getpid
from typing import Any, Literal, TypeAlias

import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace import __version__
from headrace_core.telemetry.exporting import Export

Kind: TypeAlias = Literal["server", "client", "producer", "consumer", "internal"]

MAX_TRACESTATE = 512
"""Characters of a caller's `tracestate` that are kept; W3C asks for no more. A longer one is left out."""
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
_HEADERS = ("traceparent", "tracestate")
_KINDS = {kind.name.lower(): kind for kind in SpanKind}
_W3C = TraceContextTextMapPropagator()
_NOTHING = Context()


class Spans:
    """Makes spans. Contexts come and go as text: `traceparent`, and after a space `tracestate` where there is one."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("headrace", __version__)

    @classmethod
    def of(cls, service: str, environ: Mapping[str, str], export: Export) -> Spans:
        """Of a service's process: also what handlers do with the OpenTelemetry API goes to `export`.

        The sampler is the one of OTEL_TRACES_SAMPLER; unless set, everything whose parent is not unsampled.
        """
        provider = TracerProvider(resource=_resource(service, environ), shutdown_on_exit=False)
        provider.add_span_processor(export)
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(provider)
        return cls(provider)

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Mapping[str, Any],
        parent: str | Span | None = None,
        links: Sequence[str | Span] = (),
        start_time: int | None = None,
    ) -> Span:
        """A span that the caller ends. `parent`: a context as text, a span, or None: a new trace.

        `start_time`: nanoseconds since 1970; None: now.
        """
        return self._tracer.start_span(
            name,
            _context_of(parent),
            _KINDS[kind],
            dict(attributes),
            [Link(_span_context(link)) for link in links],
            start_time,
            record_exception=False,
            set_status_on_exception=False,
        )

    @contextmanager
    def rpc(self, method: str, metadata: Iterable[Any] | None) -> Iterator[Callable[[str], None]]:
        """The server's span of a call, current within; lines of the log carry its trace.

        What is yielded is to be called with the name of the call's code.
        """
        carrier = {key: str(value) for key, value in metadata or () if key in _HEADERS}
        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self.start(method, "server", attributes, _checked_text(carrier))
        with self.current(span):
            try:
                yield lambda code: _end_rpc(span, code)
            finally:
                span.end()

    @contextmanager
    def current(self, span: Span) -> Iterator[None]:
        """Spans made within are children of `span`, lines of the log carry its trace.

        Unlike OpenTelemetry's own, it records no exception: its text may hold what was submitted.
        """
        token = attach(trace.set_span_in_context(span))
        try:
            with structlog.contextvars.bound_contextvars(trace_id=self.trace_id(span)):
                yield
        finally:
            detach(token)

    def context_in(self, span: Span) -> contextvars.Context:
        """For a task or a thread of its own: `span` is current in there, and nothing else."""
        context = contextvars.Context()
        context.run(attach, trace.set_span_in_context(span))
        context.run(structlog.contextvars.bind_contextvars, trace_id=self.trace_id(span))
        return context

    def current_span(self) -> Span | None:
        """The one that is current, if there is one."""
        span = trace.get_current_span()
        return span if span.get_span_context().is_valid else None

    def remote(self, text: str) -> Span:
        """The span of another process that `text` names, to be a parent here."""
        return NonRecordingSpan(_span_context(text))

    @staticmethod
    def text_of(span: Span) -> str:
        """The context of `span` as text."""
        found = span.get_span_context()
        parent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 1:02x}"
        state = found.trace_state.to_header()
        return f"{parent} {state}" if state and len(state) <= MAX_TRACESTATE else parent

    @staticmethod
    def is_sampled(text: str) -> bool:
        """Whether a context as text belongs to a trace that is kept."""
        return text[53:55] == "01"

    @staticmethod
    def headers_of(span: Span) -> dict[str, str]:
        """The context of `span` as the headers of a call over HTTP."""
        traceparent, _, tracestate = Spans.text_of(span).partition(" ")
        return {"traceparent": traceparent, "tracestate": tracestate} if tracestate else {"traceparent": traceparent}

    @staticmethod
    def trace_id(span: Span) -> str:
        """32 hexadecimal digits."""
        return f"{span.get_span_context().trace_id:032x}"

    @staticmethod
    def fail(span: Span, type_: str) -> None:
        """Mark `span` as failed by an error of this type, without its text."""
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("error.type", type_)


def _end_rpc(span: Span, code: str) -> None:
    """A server's span is an error for what the server is at fault for; what a caller did wrong is none."""
    span.set_attribute("rpc.response.status_code", code)
    if code in _FAULTS:
        Spans.fail(span, code)


def _checked_text(carrier: Mapping[str, str]) -> str | None:
    """What a caller sent as text; None if it is no trace context."""
    if "traceparent" not in carrier:
        return None
    span = trace.get_current_span(_W3C.extract(carrier, _NOTHING))
    return Spans.text_of(span) if span.get_span_context().is_valid else None


def _context_of(parent: str | Span | None) -> Context:
    if parent is None:
        return _NOTHING
    span = NonRecordingSpan(_span_context(parent)) if isinstance(parent, str) else parent
    return trace.set_span_in_context(span, _NOTHING)


def _span_context(source: str | Span) -> trace.SpanContext:
    """By position: OpenTelemetry's parser costs ten times as much, and `text_of` wrote what is read here."""
    if not isinstance(source, str):
        return source.get_span_context()
    try:
        number, span_id, flags = int(source[3:35], 16), int(source[36:52], 16), int(source[53:55], 16)
    except ValueError:
        return trace.INVALID_SPAN_CONTEXT  # not written by us; a unit must start whatever stands there
    state = trace.TraceState.from_header([source[56:]]) if len(source) > 56 else None
    return trace.SpanContext(number, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags), trace_state=state)


def _resource(service: str, environ: Mapping[str, str]) -> Resource:
    attributes: dict[str, Any] = {"service.instance.id": f"{socket.gethostname()}:{getpid()}"}
    attributes |= {"service.version": __version__, "headrace.service": service}
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create(attributes if named else {**attributes, "service.name": f"headrace-{service}"})
