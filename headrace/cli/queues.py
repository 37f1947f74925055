"""`headrace queues`: what waits where, and pausing, resuming, emptying a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import describe, output
from headrace.cli.confirm import confirmed
from headrace.cli.session import Session, verb

if TYPE_CHECKING:
    from headrace.v1 import queue_pb2

app = typer.Typer(help="Queues: what waits where; pause, resume, purge.", rich_markup_mode=None)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The queue's name.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.callback(invoke_without_command=True)
def _queues(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        output.write_line(ctx.get_help())


async def list_queues(session: Session) -> None:
    """List all queues with their figures."""
    queues = await session.client.queues.list()
    if session.json:
        for queue in queues:
            output.write_message(queue)
        return
    output.write_table(describe.QUEUE_COLUMNS, [describe.queue_row(queue) for queue in queues])


async def show(session: Session, name: Name) -> None:
    """Show one queue."""
    _write(session, await session.client.queues.get(name))


async def pause(session: Session, name: Name) -> None:
    """Start nothing more of a queue; what runs goes on, and submits are accepted."""
    _write(session, await session.client.queues.pause(name))


async def resume(session: Session, name: Name) -> None:
    """Go on with a paused queue."""
    _write(session, await session.client.queues.resume(name))


async def purge(session: Session, name: Name, yes: YesOption = False) -> None:
    """Cancel every PENDING task of a queue; what runs goes on."""
    queue = await session.client.queues.get(name)
    waiting = queue.backlog + queue.delayed
    if not yes:
        confirmed(f"cancel all {waiting} waiting tasks of queue {name}")
    purged = await session.client.queues.purge(name)
    output.note(f"headrace: {purged} tasks of queue {name} are CANCELLED")
    if session.json:
        output.write_message(await session.client.queues.get(name))


def _write(session: Session, queue: queue_pb2.Queue) -> None:
    if session.json:
        output.write_message(queue)
    else:
        cells = describe.queue_row(queue)
        names = (name.lower() for name in describe.QUEUE_COLUMNS)
        output.write_fields(zip(names, cells, strict=True))


for _name, _function in (
    ("list", list_queues),
    ("show", show),
    ("pause", pause),
    ("resume", resume),
    ("purge", purge),
):
    verb(app, _name)(_function)
