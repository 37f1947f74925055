"""What every verb gets: the client, the way to print, and the options that are accepted everywhere."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from headrace.cli.exits import Failure, usage_failure

if TYPE_CHECKING:
    from headrace.client import Client

Verb: TypeAlias = Callable[..., Coroutine[Any, Any, int | None]]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, and nothing else.")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="The tenant.")]
ProducerOption = Annotated[str | None, typer.Option("--producer", metavar="HOST:PORT", help="The producer.")]
StatusOption = Annotated[str | None, typer.Option("--status", metavar="HOST:PORT", help="The status service.")]


@dataclass(frozen=True, slots=True)
class Target:
    """Which services, as whom; None: from the environment, or the default."""

    namespace: str | None = None
    producer: str | None = None
    status: str | None = None

    def over(self, other: Target) -> Target:
        """Return this one, and what `other` says where this one is silent."""
        return Target(
            self.namespace if self.namespace is not None else other.namespace,
            self.producer if self.producer is not None else other.producer,
            self.status if self.status is not None else other.status,
        )


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a verb."""

    client: Client
    json: bool
    namespace: str | None
    """As the caller named it; None where he did not."""


def verb(app: typer.Typer, name: str) -> Callable[[Verb], Callable[..., None]]:
    """Make a verb of an async function that takes a Session first and returns an exit code (None: 0).

    Adds --json, --namespace, --producer and --status to its options. The docstring is the help text.
    """

    def register(function: Verb) -> Callable[..., None]:
        signature = _signature(function)

        @functools.wraps(function)
        def command(
            ctx: typer.Context,
            json: bool = False,
            namespace: str | None = None,
            producer: str | None = None,
            status: str | None = None,
            **arguments: Any,
        ) -> None:
            target = Target(namespace, producer, status).over(ctx.obj or Target())
            code = asyncio.run(_run(target, json, lambda session: function(session, **arguments)))
            raise typer.Exit(code or 0)

        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
        app.command(name)(command)
        return command

    return register


async def _run(target: Target, as_json: bool, work: Callable[[Session], Coroutine[Any, Any, int | None]]) -> int | None:
    from headrace.client import Client  # noqa: PLC0415 - gRPC: a third of a second that --help does not need
    from headrace.errors import HeadraceError  # noqa: PLC0415

    try:
        client = Client(target.producer, target.status, target.namespace or "default")
    except ValueError as error:
        raise usage_failure(str(error)) from error
    try:
        async with client:
            return await work(Session(client, as_json, target.namespace))
    except HeadraceError as error:
        raise Failure.of(error) from error


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    shared = [
        inspect.Parameter("json", keyword, default=False, annotation=JsonOption),
        inspect.Parameter("namespace", keyword, default=None, annotation=NamespaceOption),
        inspect.Parameter("producer", keyword, default=None, annotation=ProducerOption),
        inspect.Parameter("status", keyword, default=None, annotation=StatusOption),
    ]
    named = [one.replace(kind=keyword) for one in own]
    return inspect.Signature([context, *named, *shared])
