"""`headrace topology`: the streams and durable consumers in JetStream, as headrace.toml declares them."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from headrace_core.bus import topology
from headrace_core.bus.connection import Bus
from headrace_core.bus.errors import BusUnavailable
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.queues import load_topology

app = typer.Typer(help="The streams in NATS, as headrace.toml declares them.", no_args_is_help=True)

CONNECT_SECONDS = 10.0
NatsUrl = Annotated[str, typer.Option(envvar="HEADRACE_NATS_URL", help="nats:// URL of the server.")]
Config = Annotated[
    Path | None, typer.Option(help="headrace.toml; default: HEADRACE_CONFIG, then the working folder.")
]
DEFAULT_NATS_URL = "nats://127.0.0.1:4222"


@app.callback()
def main() -> None:
    """Work on the streams in NATS."""


@app.command()
def apply(
    nats_url: NatsUrl = DEFAULT_NATS_URL,
    config: Config = None,
    replicas: Annotated[int, typer.Option(min=1, max=5, help="Copies of each stream in a cluster.")] = 1,
) -> None:
    """Create what is missing and change what differs; print each change."""
    declaration = _declaration(config)
    changes = _run(nats_url, lambda bus: topology.apply(bus, declaration, replicas))
    for change in changes:
        typer.echo(change)
    if not changes:
        typer.echo("nothing to change: the topology is as declared")


@app.command()
def verify(nats_url: NatsUrl = DEFAULT_NATS_URL, config: Config = None) -> None:
    """Compare the server with the declaration; print each problem and exit with 1 when there is one."""
    declaration = _declaration(config)
    problems = _run(nats_url, lambda bus: topology.verify(bus, declaration))
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo("the topology is as declared")
