"""Verbs of the services (dev, db, topology): found by entry points, present only with the server extra.

Their modules import the services' libraries. So one is loaded only when it is called; in the help the others stand by
name, and only if those libraries can be found.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

import typer

from headrace.cli.exits import usage_failure

GROUP = "headrace.cli"
OURS = frozenset({"headrace", "headrace_core", "producer", "consumer", "status"})
# Found without being imported: enough for the help, which must be fast. Calling a verb decides for real.
SERVER_LIBRARIES = ("psycopg", "nats", "pydantic_settings")
OPTIONS_WITH_VALUE = frozenset({"--namespace", "--producer", "--status"})
DESCRIPTIONS = {
    "db": "The database's schema.",
    "dev": "Run Postgres, NATS and the three services on this machine, until Ctrl-C.",
    "topology": "The streams in NATS, as headrace.toml declares them.",
}
INSTALL = "pip install 'headrace[server,stack]'"


def register(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Add the services' verbs: the called one for real, the others by name."""
    called = called_verb(arguments)
    own = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    if called in own:
        return
    available = all(importlib.util.find_spec(library) is not None for library in SERVER_LIBRARIES)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name == called:
            _add_loaded(app, point)
        else:
            _add_named(app, point, hidden=not available)


def called_verb(arguments: Sequence[str]) -> str | None:
    """Return the first argument that is neither an option nor an option's value."""
    rest = iter(arguments)
    for argument in rest:
        if argument in OPTIONS_WITH_VALUE:
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return None


def _add_loaded(app: typer.Typer, point: EntryPoint) -> None:
    try:
        loaded = point.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OURS:
            raise  # a defect of ours, not an extra that was left out
        app.command(point.name, hidden=True, context_settings={"ignore_unknown_options": True})(
            _refusal(point.name, missing)
        )
        return
    app.add_typer(loaded, name=point.name)


def _add_named(app: typer.Typer, point: EntryPoint, *, hidden: bool) -> None:
    def never_called() -> None:
        raise AssertionError("a verb that is called has been loaded")

    app.command(point.name, hidden=hidden, help=DESCRIPTIONS.get(point.name, "A verb of the services."))(never_called)


def _refusal(name: str, missing: str) -> Callable[[list[str]], None]:
    def refuse(arguments: list[str] = typer.Argument(default=[])) -> None:  # noqa: ARG001, B008 - swallows the rest
        raise usage_failure(f"headrace {name} needs the server extra ({missing} is missing): {INSTALL}")

    return refuse
