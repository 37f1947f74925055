"""`headrace db`: the schema."""

import asyncio
from typing import Annotated

import typer

from headrace_core.db.errors import translate
from headrace_core.db.migrate import migrate as apply_migrations

app = typer.Typer(help="The database's schema.", no_args_is_help=True)

DEFAULT_DATABASE_URL = "postgresql://postgres@127.0.0.1:5432/headrace"


@app.callback()
def db() -> None:
    """Work on the database's schema."""


@app.command()
def migrate(
    database_url: Annotated[
        str, typer.Option(envvar="HEADRACE_DATABASE_URL", help="postgresql:// URL of the database.")
    ] = DEFAULT_DATABASE_URL,
) -> None:
    """Apply the migrations that are missing. Safe to run at any time and from several places at once."""
    try:
        applied = asyncio.run(apply_migrations(database_url))
    except Exception as error:
        known = error if isinstance(error, RuntimeError) else translate(error)
        if known is None:
            raise
        typer.echo(f"headrace db migrate: {known}", err=True)
        raise typer.Exit(1) from error
    for version in applied:
        typer.echo(f"applied {version}")
    if not applied:
        typer.echo("nothing to apply: the schema is current")
