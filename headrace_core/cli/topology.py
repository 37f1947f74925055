"""`headrace topology`: the streams and durable consumers in JetStream, as headrace.toml declares them."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from headrace_core.bus.access import Access
from headrace_core.bus.errors import BusError, BusUnavailable, ClusterTooSmall
from headrace_core.bus.permissions import ADMIN, document
from headrace_core.bus.topology import (
    StreamNames,
    TopologyRow,
    apply_topology,
    list_topology,
    verify_topology,
)
from headrace_core.cli.waiting import WaitOption, end_on_sigterm, until_there
from headrace_core.settings.environment import ServiceSettings, load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs

app = typer.Typer(help="The streams in NATS, as headrace.toml declares them.", no_args_is_help=True)
COLUMNS = ("stream", "subjects", "messages", "durable", "pending", "unacknowledged")

T = TypeVar("T")
NatsUrl = Annotated[
    str | None, typer.Option(help="nats:// URL of the server; default: HEADRACE_NATS_URL, then this machine's.")
]
Config = Annotated[
    Path | None, typer.Option(help="headrace.toml; default: HEADRACE_CONFIG, then the working folder's.")
]


@app.callback()
def topology() -> None:
    """Work on the streams in NATS."""
    end_on_sigterm()


@app.command()
def apply(
    nats_url: NatsUrl = None,
    config: Config = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1, max=5, help="Copies of each stream, also of those that are there; default: 1 for new ones."
        ),
    ] = None,
    wait: WaitOption = 0.0,
) -> None:
    """Create what is missing and change what differs; print each change.

    --wait is for a NATS that cannot be reached yet, or whose cluster is not complete.
    """
    settings = _settings(nats_url, config)
    changes = _run(_apply(settings, replicas, wait))
    _print(changes or ["nothing to change: the topology is as declared"])


@app.command()
def verify(nats_url: NatsUrl = None, config: Config = None) -> None:
    """Compare the server with the declaration; print each problem and exit with 1 when there is one."""
    settings = _settings(nats_url, config)
    queues = settings.topology.queues.values()
    problems = _run(verify_topology(settings.nats_url, _names(settings), queues, access=_access(settings)))
    _print(problems or ["the topology is as declared"])
    if problems:
        raise typer.Exit(1)


@app.command(name="list")
def show(nats_url: NatsUrl = None, config: Config = None) -> None:
    """Show the streams and durables that the server has, with what waits in them; tab-separated in a pipe."""
    settings = _settings(nats_url, config)
    rows = _run(list_topology(settings.nats_url, _names(settings), access=_access(settings)))
    if not rows:
        where = logs.without_passwords(settings.nats_url)
        _fail(f"{where} has no stream of Headrace; create them with: headrace topology apply")
    if sys.stdout.isatty():
        table = Table(*COLUMNS)
        for row in rows:
            table.add_row(*_cells(row, "\n"))
        Console().print(table)
    else:
        _print(["\t".join(cells) for cells in (COLUMNS, *(_cells(row, ",") for row in rows))])


@app.command()
def permissions(config: Config = None) -> None:
    """Print what each service has to be allowed on NATS, as a file for nats-server to include."""
    sys.stdout.write(document(_names(_settings(None, config))))


async def _apply(settings: ServiceSettings, replicas: int | None, wait: float) -> list[str]:
    queues = settings.topology.queues.values()

    async def attempt() -> list[str]:
        return await apply_topology(settings.nats_url, _names(settings), queues, replicas, access=_access(settings))

    return await until_there(attempt, (BusUnavailable, ClusterTooSmall), wait, "headrace topology apply")


def _cells(row: TopologyRow, between: str) -> tuple[str, ...]:
    counts = (str(row.pending), str(row.ack_pending)) if row.durable else ("", "")
    return (row.stream, between.join(row.subjects), str(row.messages), row.durable, *counts)


def _settings(nats_url: str | None, config: Path | None) -> ServiceSettings:
    logs.configure("error", "console", "topology")  # otherwise structlog writes to standard output
    given = {"HEADRACE_NATS_URL": nats_url, "HEADRACE_CONFIG": None if config is None else str(config)}
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        settings = load_settings(os.environ | chosen, default_listen="127.0.0.1:0")
    except SettingsError as error:
        _fail(error.message)
    if settings.broker == "none":
        _fail('broker = "none": Headrace runs on Postgres alone here and needs no streams')
    return settings


def _names(settings: ServiceSettings) -> StreamNames:
    return StreamNames(prefix=settings.stream_prefix, subjects=settings.subject_prefix)


def _access(settings: ServiceSettings) -> Access:
    return Access.of(settings, ADMIN)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except BusError as error:
        _fail(error.message)


def _print(lines: list[str]) -> None:
    sys.stdout.write("".join(line + "\n" for line in lines))


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"headrace topology: {sentence}", err=True)
    raise typer.Exit(1)
