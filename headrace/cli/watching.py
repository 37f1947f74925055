"""Verbs that follow tasks live: watch, tail."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import describe, output
from headrace.cli.arguments import labels
from headrace.cli.bar import TaskBar
from headrace.cli.exits import ExitCode
from headrace.cli.session import Session, verb

if TYPE_CHECKING:
    from headrace.v1 import event_pb2


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    verb(app, "watch")(watch)
    verb(app, "tail")(tail)


async def watch(
    session: Session,
    id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    after: Annotated[
        int | None, typer.Option("--after", metavar="SEQUENCE", min=0, help="Resume after this event.")
    ] = None,
) -> int:
    """Follow a task until it ends. Exit code 0 if it is COMPLETED, 1 if it ended otherwise."""
    return await follow(session, id, after)


async def tail(
    session: Session,
    queue: Annotated[str, typer.Option("--queue", metavar="NAME", help="The queue.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="STATE", help="Show only how tasks come into this state. May be repeated."),
    ] = None,
) -> None:
    """Follow all tasks that match, those submitted later included, until Ctrl-C."""
    from headrace.reading import state_number  # noqa: PLC0415 - gRPC is imported by the verbs that use it

    shown = {describe.state_name(state_number(name)) for name in state or ()}
    events = session.client.watch_many(labels=labels(label or ()), queue=queue, heartbeats=session.json)
    async with aclosing(events) as stream:
        async for event in stream:
            if shown and task_state(event) not in shown:
                continue
            if session.json:
                output.write_message(event)
            elif text := describe.event_text(event):
                output.write_line(f"{event.task_id}  {text}")


async def follow(session: Session, id: str, after: int | None = None) -> int:
    """Print a task's events until it has ended; return the exit code for its end."""
    events = session.client.watch(id, after, heartbeats=session.json)
    last = await (_print_json(events) if session.json else _print_lines(events))
    if last is None:
        # It had ended before `after`: the events say nothing of how.
        last = describe.state_name((await session.client.get(id)).state)
    return ExitCode.OK if last == "COMPLETED" else ExitCode.FAILED


async def _print_json(events: AsyncGenerator[event_pb2.TaskEvent]) -> str | None:
    last = None
    async with aclosing(events) as stream:
        async for event in stream:
            output.write_message(event)
            last = task_state(event) or last
    return last


async def _print_lines(events: AsyncGenerator[event_pb2.TaskEvent]) -> str | None:
    last = None
    with _bar() as bar:
        async with aclosing(events) as stream:
            async for event in stream:
                if bar is not None:
                    bar.show(event)
                if text := describe.event_text(event):
                    output.write_line(text)
                last = task_state(event) or last
    return last


def task_state(event: event_pb2.TaskEvent) -> str | None:
    """Return the task's state as `event` shows it; None if the event says nothing of it."""
    match event.WhichOneof("event"):
        case "snapshot":
            return describe.state_name(event.snapshot.state)
        case "state_change" if event.state_change.terminal or not describe.unit_text(event.unit):
            return describe.state_name(event.state_change.state)
        case _:
            return None


@contextlib.contextmanager
def _bar() -> Iterator[TaskBar | None]:
    # rich sends standard output through the bar's own stream, so both must be the terminal.
    if sys.stdout.isatty() and sys.stderr.isatty():
        with TaskBar() as bar:
            yield bar
    else:
        yield None
