"""`headrace db`: the schema."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from headrace_core.cli.waiting import WaitOption, end_on_sigterm, until_there
from headrace_core.db import migrate as migrations
from headrace_core.db.errors import DatabaseUnavailable, translate
from headrace_core.db.restored import STEP, raise_epochs

app = typer.Typer(help="The database's schema.", no_args_is_help=True)

DEFAULT_DATABASE_URL = "postgresql://postgres@127.0.0.1:5432/headrace"
MIGRATE, VERIFY, RESTORED = "headrace db migrate", "headrace db verify", "headrace db restored"

T = TypeVar("T")
AfterDeploy = Annotated[
    bool,
    typer.Option(
        "--after-deploy",
        help="Also those labelled `after deploy`: when no process of the release before is left, nor wanted back.",
    ),
]
DatabaseUrl = Annotated[str, typer.Option(envvar="HEADRACE_DATABASE_URL", help="postgresql:// URL of the database.")]


class NotThere(Exception):
    """What a verb may wait for is not there; the text says what."""


@app.callback()
def db() -> None:
    """Work on the database's schema."""
    end_on_sigterm()


@app.command()
def migrate(
    database_url: DatabaseUrl = DEFAULT_DATABASE_URL, after_deploy: AfterDeploy = False, wait: WaitOption = 0.0
) -> None:
    """Apply the migrations that are missing and labelled `before deploy`.

    Safe to run at any time and from several places at once. --wait is for a Postgres that cannot be reached yet. A
    migration that fails is not repeated.
    """
    applied, later = _run(MIGRATE, _migrate(database_url, wait, after_deploy))
    for version in applied:
        typer.echo(f"applied {version}")
    if not applied:
        typer.echo("nothing to apply: the schema is current")
    for version in later:
        typer.echo(f"left for headrace db migrate --after-deploy: {version}")


@app.command()
def verify(database_url: DatabaseUrl = DEFAULT_DATABASE_URL, wait: WaitOption = 0.0) -> None:
    """Exit with 0 if the database has every migration that this release needs, else with 1 and what is missing.

    A schema that is newer than this release is fine, and those labelled `after deploy` may be missing. --wait looks
    again every half second until it is there.
    """
    _run(VERIFY, until_there(lambda: _verify(database_url), (NotThere,), wait, VERIFY))
    typer.echo(f"the schema is current: it has {migrations.needed()[-1]}")


@app.command()
def restored(database_url: DatabaseUrl = DEFAULT_DATABASE_URL) -> None:
    """After a restore to an earlier time, before the services start: raise all epochs that may be counted on.

    Other systems that fence by the epoch alone may have seen the next ones already. Harmless where there are none.
    """
    units = _run(RESTORED, raise_epochs(database_url))
    typer.echo(f"{units} units: epochs raised by {STEP:,}")


async def _migrate(database_url: str, wait: float, after_deploy: bool) -> tuple[list[str], list[str]]:
    """The versions applied, and those that are left for after the deploy."""
    await until_there(lambda: _missing(database_url), (NotThere,), wait, MIGRATE)
    applied = await migrations.migrate(database_url, after_deploy=after_deploy, note=_note(MIGRATE))
    return applied, await migrations.missing_versions(database_url, after_deploy=True)


async def _verify(database_url: str) -> None:
    if missing := await _missing(database_url):
        raise NotThere(f"the schema lacks {', '.join(missing)}; run: headrace db migrate")


async def _missing(database_url: str) -> list[str]:
    """The versions that are missing; raises NotThere if Postgres cannot be reached."""
    try:
        return await migrations.missing_versions(database_url)
    except Exception as error:
        known = translate(error)
        if isinstance(known, DatabaseUnavailable):
            raise NotThere(known.message) from error
        raise


def _note(verb: str) -> Callable[[str], None]:
    return lambda text: typer.echo(f"{verb}: {text}", err=True)


def _run(verb: str, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; what is known to go wrong ends the verb with one sentence and exit code 1."""
    try:
        return asyncio.run(work)
    except Exception as error:
        known = error if isinstance(error, (RuntimeError, NotThere)) else translate(error)
        if known is None:
            raise
        _fail(verb, str(known), error)


def _fail(verb: str, sentence: str, cause: Exception) -> NoReturn:
    typer.echo(f"{verb}: {sentence}", err=True)
    raise typer.Exit(1) from cause
