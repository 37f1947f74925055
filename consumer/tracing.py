"""The spans of a consumer: for each attempt, for each call of a batch handler, for each question to a model.

Used only where traces are on. An attempt's span begins with its claim and ends when its settlement is committed; what
the commit did is an event on it, not a span of the batch (decision 13). The handler runs in a context in which the span
is current and lines of the log carry `trace_id`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from headrace_core.tasks.model import ClaimedUnit, Complete, Plan, Publication, Settled, Settlement, Settlements
from headrace_core.tasks.outcome import Crashed, Interrupted, Outcome, Raised, TimedOut
from headrace_core.telemetry import tracing

if TYPE_CHECKING:
    from headrace_core.telemetry.spans import Spans


class AttemptTrace:
    """The span of one attempt, and the context in which everything of the attempt runs."""

    def __init__(self, spans: Spans, unit: ClaimedUnit, source: str) -> None:
        """`source` is broker or postgres: how the unit came."""
        name = f"process {unit.queue}"
        self.span = spans.start(name, "consumer", _attributes(unit, source), unit.trace_context)
        self.context = spans.context_in(self.span)
        self._spans = spans
        self._unit = unit

    @property
    def text(self) -> str:
        """The context of the span, for what is not in this process."""
        return self._spans.text_of(self.span)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self._spans.trace_id(self.span)

    def ended(self, outcome: Outcome | None) -> None:
        """Its handler has ended; None: the lease or the task was lost meanwhile, and that is the end."""
        if outcome is None:
            self.span.set_attribute("headrace.outcome", "lost")
            self.close()
            return
        name = type(outcome).__name__.lower()
        self.span.set_attribute("headrace.outcome", name)
        self.span.add_event("handler ended")
        if (error := _error_type(outcome)) is not None:
            self._spans.fail(self.span, error)

    def settled(self, settlement: Settlement, answer: Settled, batch: int) -> None:
        """Its end is committed, with `batch` settlements in one transaction, or was refused: the lease was lost."""
        name = type(settlement).__name__.lower()
        reason = "" if isinstance(settlement, Complete | Plan) else settlement.reason
        event: dict[str, str | int] = {"headrace.settlement": name, "headrace.batch_size": batch}
        self.span.add_event("settled" if answer.applied else "fenced", event)
        if reason:
            self.span.set_attribute("headrace.reason", reason)
        if answer.dead_letter_id is not None:
            self._dead_letter(answer.dead_letter_id, reason)
        self.close()

    def close(self) -> None:
        """Nothing follows. Idempotent."""
        if self.span.is_recording():
            self.span.end()

    def _dead_letter(self, letter: str, reason: str) -> None:
        attributes = _attributes(self._unit, None, "dead_letter")
        attributes |= {"headrace.dead_letter_id": letter, "headrace.reason": reason}
        name = f"dead_letter {self._unit.queue}"
        self._spans.start(name, "internal", attributes, self.span).end()


class BatchTrace:
    """One call of a batch handler, which serves many attempts: a child of the first one's span, with links to all."""

    def __init__(self, spans: Spans, attempts: Sequence[AttemptTrace], kind: str) -> None:
        members = [attempt.span for attempt in attempts]
        attributes = {"headrace.kind": kind, "messaging.batch.message_count": len(members)}
        self._span = spans.start(f"batch {kind}", "internal", attributes, members[0], members)
        self.context = spans.context_in(self._span)
        for member in members:
            member.add_link(self._span.get_span_context())

    def ended(self, _call: object = None) -> None:
        """The call is over. Whether it failed is in the attempts, each by itself."""
        self._span.end()


def attempt_trace(unit: ClaimedUnit, source: str) -> AttemptTrace | None:
    """None where traces are off."""
    return None if tracing.spans is None else AttemptTrace(tracing.spans, unit, source)


def batch_trace(attempts: Sequence[AttemptTrace | None], kind: str) -> BatchTrace | None:
    """None where traces are off."""
    traced = [attempt for attempt in attempts if attempt is not None]
    return None if tracing.spans is None or not traced else BatchTrace(tracing.spans, traced, kind)


@contextmanager
def continued(text: str | None) -> Iterator[None]:
    """In a worker process: the span of the attempt is current, and lines of the log carry its trace."""
    if tracing.spans is None or text is None:
        yield
        return
    with tracing.spans.current(tracing.spans.remote(text)):
        yield


def settled(batch: Sequence[tuple[AttemptTrace | None, Settlement]], settlements: Settlements) -> Settlements:
    """End the spans of a settled batch; the settlements, whose publications belong to the attempts that left them."""
    texts: dict[Any, str] = {}
    for (trace, settlement), answer in zip(batch, settlements.answers, strict=True):
        if trace is not None:
            texts[settlement.lease.unit_id.task_id] = trace.text
            trace.settled(settlement, answer, len(batch))
    return settlements._replace(publications=[_with_trace(item, texts) for item in settlements.publications])


@contextmanager
def inference(operation: str, model: str, provider: str, url: str = "") -> Iterator[Mapping[str, str] | None]:
    """Around one question to a model: its span, and the headers that carry the trace to the server; None: off."""
    spans = tracing.spans
    if spans is None:
        yield None
        return
    attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "server.address": urlsplit(url).hostname or "",
    }
    span = spans.start(f"{operation} {model}", "client" if url else "internal", attributes, spans.current_span())
    try:
        with spans.current(span):
            yield spans.headers_of(span)
    except BaseException as error:
        spans.fail(span, type(error).__name__)
        raise
    finally:
        span.end()


def _with_trace(publication: Publication, texts: Mapping[Any, str]) -> Publication:
    text = texts.get(publication.unit_id.task_id)
    return publication if text is None else publication._replace(trace_context=text)


def _attributes(unit: ClaimedUnit, source: str | None, operation: str = "process") -> dict[str, Any]:
    task_id, number = unit.lease.unit_id
    attributes: dict[str, Any] = tracing.task_attributes(operation, task_id, unit.namespace, unit.queue, unit.kind)
    attributes |= {
        "headrace.unit": number,
        "headrace.unit_type": unit.type,
        "headrace.attempt": unit.attempt,
        "headrace.epoch": unit.lease.epoch,
        "headrace.generation": unit.generation,
    }
    if source is not None:
        attributes["headrace.source"] = source
    return attributes


def _error_type(outcome: Outcome) -> str | None:
    match outcome:
        case Raised(type_):
            return type_
        case TimedOut() | Crashed() | Interrupted():
            return type(outcome).__name__
        case _:
            return None
