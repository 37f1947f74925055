"""The spans of a producer: one for each task that is accepted, redriven, taken over, and for each publication.

Used only where traces are on. The context of the span of acceptance is what the task's row keeps, and what every
attempt of it belongs to; a redrive puts its own in its place. Work that many tasks share (a group commit, a publication
in a batch) has no span of its own: it shows on the span of each (decision 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from headrace_core.tasks.dead_letters import Traced
from headrace_core.tasks.model import NewTask, Submitted
from headrace_core.telemetry.tracing import task_attributes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from headrace_core.errors import InvalidFields
    from headrace_core.telemetry.spans import Spans


class Accepting:
    """The spans of the tasks of one call. `tasks` are the same ones, with their contexts."""

    def __init__(self, spans: Spans, tasks: Sequence[NewTask]) -> None:
        parent = spans.current_span()
        self._spans = spans
        self._of_tasks: list[Span] = []
        self.tasks: list[NewTask] = []
        for task in tasks:
            attributes = task_attributes("create", task.id, task.namespace, task.queue, task.kind)
            span = spans.start(f"create {task.queue}", "producer", attributes, parent)
            self._of_tasks.append(span)
            self.tasks.append(task._replace(trace_context=spans.text_of(span)))

    def answered(self, answers: Sequence[Submitted | InvalidFields]) -> None:
        """What became of each. One that its key had brought before says which task that is: its trace is another."""
        for span, answer in zip(self._of_tasks, answers, strict=True):
            if not isinstance(answer, Submitted):
                self._spans.fail(span, type(answer).__name__)
            elif not answer.created:
                span.set_attributes({"headrace.created": False, "headrace.task_id": str(answer.task.id)})

    def failed(self, error: BaseException) -> None:
        """None of them is known to be accepted."""
        for span in self._of_tasks:
            self._spans.fail(span, type(error).__name__)

    def end(self) -> None:
        """The call is over."""
        for span in self._of_tasks:
            span.end()


@contextmanager
def accepting(spans: Spans, tasks: Sequence[NewTask]) -> Iterator[Accepting]:
    """Around the commit of `tasks`."""
    found = Accepting(spans, tasks)
    try:
        yield found
    except BaseException as error:
        found.failed(error)
        raise
    finally:
        found.end()


@contextmanager
def redriving(spans: Spans, tasks: Sequence[Traced]) -> Iterator[dict[UUID, str]]:
    """Around a redrive of `tasks`: their new contexts.

    Each span stays in the trace of its task, below the span of the generation before, which it also links to; the
    call of whoever redrives is linked to. A task without a trace joins the one of that call.
    """
    call = spans.current_span()
    found: dict[UUID, Span] = {}
    for task in tasks:
        attributes = task_attributes("redrive", task.task_id, task.namespace, task.queue, task.kind)
        attributes["headrace.generation"] = task.generation + 1
        links = [link for link in (task.trace_context, call) if link is not None]
        parent = task.trace_context or call
        found[task.task_id] = spans.start(f"redrive {task.queue}", "producer", attributes, parent, links)
    try:
        yield {task_id: spans.text_of(span) for task_id, span in found.items()}
    except BaseException as error:
        for span in found.values():
            spans.fail(span, type(error).__name__)
        raise
    finally:
        for span in found.values():
            span.end()


def taken_over(spans: Spans, tasks: Sequence[Traced]) -> None:
    """Note in their traces that the attempt which was running has been given up: its own span died with its holder."""
    for task in tasks:
        if task.trace_context is not None:
            attributes = task_attributes("takeover", task.task_id, task.namespace, task.queue, task.kind)
            spans.start(f"takeover {task.queue}", "internal", attributes, task.trace_context).end()
