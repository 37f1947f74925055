"""Verbs about single tasks and lists of them: submit, get, result, list, cancel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from headrace.cli import describe, output
from headrace.cli.arguments import duration, json_object, labels, moment
from headrace.cli.exits import ExitCode, Failure
from headrace.cli.session import Session, verb
from headrace.cli.watching import follow

if TYPE_CHECKING:
    from headrace.reading import StateName
    from headrace.v1 import task_pb2

DEFAULT_LIMIT = 100
Priority = Literal["low", "normal", "high"]
TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")]
StateOption = Annotated[
    list[str] | None, typer.Option("--state", metavar="STATE", help="PENDING, FAILED, …; may be repeated.")
]
QueueOption = Annotated[str, typer.Option("--queue", metavar="NAME", help="The queue.")]
KindOption = Annotated[str, typer.Option("--kind", metavar="KIND", help="The kind.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for name, function in (
        ("submit", submit),
        ("get", get),
        ("result", result),
        ("list", list_tasks),
        ("cancel", cancel),
    ):
        verb(app, name)(function)


async def submit(
    session: Session,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Which handler runs it.")],
    payload: Annotated[
        str, typer.Option("--payload", metavar="JSON|@FILE|-", help="A JSON object; - is standard input.")
    ] = "{}",
    queue: Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Default: the kind's.")] = None,
    priority: Annotated[Priority | None, typer.Option("--priority", help="Default: normal.")] = None,
    run_at: Annotated[str | None, typer.Option("--run-at", metavar="TIME", help="Not before.")] = None,
    delay: Annotated[str | None, typer.Option("--delay", metavar="DURATION", help="Not before: 30s, 5m.")] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME|DURATION", help="Expires if not finished by then.")
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", min=1, max=100, help="Handler failures allowed.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", metavar="KEY", help="The same key is the same task.")
    ] = None,
    label: LabelOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the task to its end.")] = False,
) -> int | None:
    """Submit a task and print it."""
    task = await session.client.submit(
        kind,
        json_object(payload),
        queue=queue,
        idempotency_key=idempotency_key,
        labels=labels(label or ()),
        priority=priority,
        run_at=None if run_at is None else moment(run_at, "--run-at"),
        delay=None if delay is None else duration(delay, "--delay"),
        deadline=None if deadline is None else moment(deadline, "--deadline"),
        max_attempts=max_attempts,
    )
    if session.json:
        output.write_message(task)
    else:
        output.write_line(task.id)
    return await follow(session, task.id) if watch else None


async def get(
    session: Session,
    id: TaskId,
    basic: Annotated[bool, typer.Option("--basic", help="Without payload, result, attempts and shards.")] = False,
) -> None:
    """Show one task: state, attempts, shards, payload and result."""
    task = await session.client.get(id, full=not basic)
    if session.json:
        output.write_message(task)
        return
    output.write_fields(describe.task_fields(task))
    for attempt in task.attempt_history:
        output.write_line(f"  {describe.attempt_text(attempt)}")
    for title, text in (("payload", task.payload_json), ("result", task.result_json)):
        if text:
            output.write_line(f"{title}:")
            output.write_indented(json.loads(text))


async def result(
    session: Session,
    id: TaskId,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="How long to wait; default: until it ends.")
    ] = None,
) -> None:
    """Wait until a task has ended and print its result."""
    seconds = None if timeout is None else duration(timeout, "--timeout").total_seconds()
    task = await session.client.wait(id, seconds)
    write_result(session, task)


def write_result(session: Session, task: task_pb2.Task) -> None:
    """Print the result of an ended task; raises Failure with exit code 1 unless it is COMPLETED."""
    require_completed(task)
    if session.json:
        output.write_json_text(task.result_json)
    else:
        output.write_indented(json.loads(task.result_json))


def require_completed(task: task_pb2.Task) -> None:
    """Raise Failure with exit code 1 unless the task is COMPLETED."""
    from headrace.errors import task_ended  # noqa: PLC0415 - needs gRPC, which --help does not

    if describe.state_name(task.state) != "COMPLETED":
        failure = Failure.of(task_ended(task))
        failure.exit_code = ExitCode.FAILED
        raise failure


async def list_tasks(
    session: Session,
    kind: KindOption = "",
    queue: QueueOption = "",
    state: StateOption = None,
    label: LabelOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = DEFAULT_LIMIT,
) -> None:
    """List tasks, newest first."""
    tasks = session.client.list(
        kind=kind,
        queue=queue,
        states=state_names(state),
        labels=labels(label or ()),
        page_size=min(limit + 1, 500) if limit else 500,
    )
    shown: list[tuple[str, ...]] = []
    count = 0
    async for task in tasks:
        count += 1
        if limit and count > limit:
            output.note(f"headrace: there are more than {limit} tasks; --limit 0 lists all")
            break
        if session.json:
            output.write_message(task)
        else:
            shown.append(describe.task_row(task))
    await tasks.aclose()
    if not session.json:
        output.write_table(describe.TASK_COLUMNS, shown)


async def cancel(session: Session, id: TaskId) -> None:
    """Cancel a task that has not ended."""
    task = await session.client.cancel(id)
    if session.json:
        output.write_message(task)
    else:
        output.write_line(f"{task.id} is {describe.state_name(task.state)}")


def state_names(names: list[str] | None) -> list[StateName]:
    """Return the names in capitals; the client refuses what is none."""
    return cast("list[StateName]", [name.upper() for name in names or ()])
