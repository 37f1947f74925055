"""What switches traces on, contexts as text, and an export that holds nothing up."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span

from headrace_core.rpc.handling import _traced
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import exporting, metrics, tracing
from headrace_core.telemetry.exporting import Export
from headrace_core.telemetry.spans import MAX_TRACESTATE, Spans
from tests.fixtures.waiting import eventually

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


class Held(SpanExporter):
    """Takes nothing before it is released."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.release = threading.Event()
        self.took: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.called.set()
        self.release.wait(20)
        self.took += [span.name for span in spans]
        return SpanExportResult.SUCCESS


@pytest.fixture
def held() -> Iterator[Held]:
    exporter = Held()
    yield exporter
    exporter.release.set()


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(memory: InMemorySpanExporter) -> Iterator[Spans]:
    export = Export(memory, delay=0.01)
    yield Spans(_provider(export))
    export.close(5)


def _provider(export: Export) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export)
    return provider


def _start(spans: Spans, name: str, parent: str | Span | None = None) -> Span:
    return spans.start(name, "internal", {}, parent)


def _dropped() -> float:
    return float(metrics.spans_dropped_total._value.get())


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ENDPOINT | {"OTEL_SDK_DISABLED": "true"}, False),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, True),
    ],
)
def test_an_endpoint_or_the_exporter_switches_traces_on(environ: dict[str, str], wanted: bool) -> None:
    assert tracing.is_wanted(environ) is wanted


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER is 'jaeger'; it must be otlp or none"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'http/protobuf'"),
        (ENDPOINT | {"OTEL_BSP_MAX_QUEUE_SIZE": "many"}, "OTEL_BSP_MAX_QUEUE_SIZE is 'many'"),
    ],
)
def test_what_cannot_work_stops_the_start(environ: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        tracing.start("producer", environ)
    assert tracing.spans is None


def test_a_server_that_is_built_without_traces_wraps_nothing() -> None:
    async def behaviour(request: Any, context: Any) -> None:
        raise NotImplementedError

    assert _traced("headrace.v1.ProducerService/SubmitTask", behaviour) is behaviour


@pytest.mark.parametrize("text", [PARENT, PARENT[:-1] + "0", f"{PARENT} vendor=a b,other=2"])
def test_a_context_is_the_same_after_its_way_through_a_row(spans: Spans, text: str) -> None:
    assert spans.text_of(spans.remote(text)) == text
    child = _start(spans, "child", text)
    assert spans.text_of(child)[:36] == text[:36]
    assert spans.text_of(child)[52:] == text[52:]
    assert child.is_recording() is (text[53:55] == "01")


@pytest.mark.parametrize("broken", ["", "x", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "é" * 600])
def test_a_context_that_is_none_begins_a_new_trace(spans: Spans, broken: str) -> None:
    with spans.rpc("a.B/C", (("traceparent", broken),)):
        current = spans.current_span()
        assert current is not None
        assert spans.trace_id(current) not in ("0" * 32, PARENT[3:35])


def test_a_tracestate_that_is_too_long_is_left_out(spans: Spans) -> None:
    state = ",".join(f"key{number}={'v' * 60}" for number in range(20))
    assert len(state) > MAX_TRACESTATE
    with spans.rpc("a.B/C", (("traceparent", PARENT), ("tracestate", state))):
        current = spans.current_span()
        assert current is not None
        assert len(spans.text_of(current)) == len(PARENT)
        assert spans.trace_id(current) == PARENT[3:35]


def test_lines_within_a_span_carry_its_trace_and_later_ones_do_not(spans: Spans) -> None:
    with spans.rpc("a.B/C", (("traceparent", PARENT),)) as ended:
        assert structlog.contextvars.get_contextvars() == {"trace_id": PARENT[3:35]}
        ended("OK")
    assert structlog.contextvars.get_contextvars() == {}


async def test_an_exception_leaves_no_text_in_a_span(spans: Spans, memory: InMemorySpanExporter) -> None:
    def fail() -> None:
        with spans.rpc("a.B/C", ()) as ended:
            ended("INTERNAL")
            raise ValueError("zebra")

    with pytest.raises(ValueError, match="zebra"):
        fail()
    (span,) = await eventually(memory.get_finished_spans)
    assert "zebra" not in span.to_json()
    assert not span.status.is_ok


def test_what_does_not_fit_is_dropped_and_counted_and_nobody_waits(held: Held) -> None:
    export = Export(held, queue_size=5, batch_size=1, delay=0.01)
    spans, before = Spans(_provider(export)), _dropped()
    _start(spans, "first").end()
    assert held.called.wait(10)
    for number in range(8):
        _start(spans, str(number)).end()
    assert _dropped() - before == 3
    held.release.set()
    export.close(10)
    assert held.took == ["first", "0", "1", "2", "3", "4"]
    assert _dropped() - before == 3


def test_an_exporter_that_hangs_holds_a_stop_up_no_longer_than_it_may(held: Held) -> None:
    export = Export(held, delay=0.01)
    spans, before = Spans(_provider(export)), _dropped()
    _start(spans, "hangs").end()
    assert held.called.wait(10)
    _start(spans, "waits").end()
    began = time.monotonic()
    export.close(0.2)
    assert time.monotonic() - began < 2
    assert _dropped() - before == 1
    _start(spans, "late").end()
    assert _dropped() - before == 2


async def test_what_is_not_sampled_is_not_sent(spans: Spans, memory: InMemorySpanExporter) -> None:
    _start(spans, "unsampled", PARENT[:-1] + "0").end()
    _start(spans, "sampled", PARENT).end()
    finished = await eventually(memory.get_finished_spans)
    assert [span.name for span in finished] == ["sampled"]


async def test_a_collector_that_refuses_is_said_once_and_so_is_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    answers = iter([SpanExportResult.FAILURE] * 3 + [SpanExportResult.SUCCESS] * 2)
    taken: list[SpanExportResult] = []

    class Line:
        def warning(self, text: str, *, action: str, error: str) -> None:
            said.append(action)

        def info(self, text: str, *, action: str) -> None:
            said.append(action)

    class Answering(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            taken.append(next(answers))
            return taken[-1]

    monkeypatch.setattr(exporting, "log", Line())
    export = Export(Answering(), batch_size=1, delay=0.01)
    spans, before = Spans(_provider(export)), _dropped()
    for number in range(5):
        _start(spans, str(number)).end()
    await eventually(lambda: len(taken) == 5)
    export.close(5)
    assert said == ["traces.export_failed", "traces.export_resumed"]
    assert _dropped() - before == 3
