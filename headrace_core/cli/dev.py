"""`headrace dev`: the whole of Headrace on this machine, from wheels, until Ctrl-C."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from headrace_core.settings.errors import SettingsError
from headrace_core.stack.dev import Endpoints, StackOptions
from headrace_core.stack.errors import StackError
from headrace_core.stack.serving import lines, serve
from headrace_core.telemetry import logs

app = typer.Typer(help="Run Postgres, NATS and the three services on this machine, until Ctrl-C.")


@app.callback(invoke_without_command=True)
def dev(
    data_dir: Annotated[
        Path, typer.Option(help="Folder of the data, the log and endpoints.json; created when missing.")
    ] = Path(".headrace"),
    producer_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 50051,
    status_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 50052,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP: /api/async-status; 0: any free port.")] = 8080,
    consumers: Annotated[int, typer.Option(min=0, help="Number of consumer processes.")] = 2,
    handlers: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Importable module with handlers; may be given several times."),
    ] = None,
) -> None:
    """Run Postgres, NATS and the three services on this machine, until Ctrl-C.

    Standard output carries the addresses and, once everything serves, a line `ready`; logs go to standard error and
    to headrace.log in the data folder. A second start on the same folder finds its data.
    """
    logs.configure("warning", "console", "dev")  # otherwise structlog writes to standard output
    options = StackOptions(
        data_dir,
        consumers=consumers,
        handlers=tuple(handlers or ()),
        producer_port=producer_port,
        status_port=status_port,
        http_port=http_port,
    )
    try:
        asyncio.run(serve(options, _announce, sys.stderr))
    except (StackError, SettingsError) as error:
        _fail(error.message)
    except OSError as error:
        _fail(f"{error.filename or data_dir}: {error.strerror or error}")


def _announce(endpoints: Endpoints) -> None:
    sys.stdout.write(lines(endpoints))
    sys.stdout.flush()


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"headrace dev: {sentence}", err=True)
    raise typer.Exit(1)
