"""What every verb gets: the client, the way to print, and the options that are accepted everywhere."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from headrace.cli.exits import Failure, usage_failure

if TYPE_CHECKING:
    from headrace.bearer import Token
    from headrace.client import Client
    from headrace.tls import Tls

Verb: TypeAlias = Callable[..., Coroutine[Any, Any, int | None]]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, and nothing else.")]
NamespaceOption = Annotated[str | None, typer.Option("--namespace", metavar="NAME", help="The tenant.")]
ProducerOption = Annotated[str | None, typer.Option("--producer", metavar="HOST:PORT", help="The producer.")]
StatusOption = Annotated[str | None, typer.Option("--status", metavar="HOST:PORT", help="The status service.")]
TlsOption = Annotated[bool | None, typer.Option("--tls/--no-tls", help="Encrypt, or do not.", show_default=False)]
CaOption = Annotated[str | None, typer.Option("--tls-ca", metavar="FILE", help="Authorities to believe, PEM.")]
CertOption = Annotated[str | None, typer.Option("--client-cert", metavar="FILE", help="Our own certificate, PEM.")]
KeyOption = Annotated[str | None, typer.Option("--client-key", metavar="FILE", help="Its key, PEM.")]
# A file and never the token itself, which everybody on the machine could read in the list of processes.
TokenOption = Annotated[str | None, typer.Option("--token-file", metavar="FILE", help="Our token is in there.")]


@dataclass(frozen=True, slots=True)
class Target:
    """Which services, as whom, how secured; None: from the environment, or the default."""

    namespace: str | None = None
    producer: str | None = None
    status: str | None = None
    tls: bool | None = None
    tls_ca: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    token_file: str | None = None

    def over(self, other: Target) -> Target:
        """Return this one, and what `other` says where this one is silent."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        return Target(**{name: getattr(other, name) if value is None else value for name, value in own.items()})

    def client(self) -> Client:
        """The client. Raises ValueError for files that cannot be used, and for a token that others could read."""
        from headrace.client import Client  # noqa: PLC0415 - gRPC: a third of a second that --help does not need

        return Client(
            self.producer, self.status, self.namespace or "default", tls=self._tls() or False, token=self._token()
        )

    def _tls(self) -> Tls | None:
        from headrace import tls  # noqa: PLC0415

        named = {tls.CA_FILE: self.tls_ca, tls.CERT_FILE: self.client_cert, tls.KEY_FILE: self.client_key}
        chosen = {**os.environ, **{variable: file for variable, file in named.items() if file is not None}}
        if self.tls is not None:
            chosen[tls.SWITCH] = str(self.tls)
        return tls.Tls.from_environment(chosen)

    def _token(self) -> Token | None:
        from headrace.bearer import TokenFile  # noqa: PLC0415

        return None if self.token_file is None else TokenFile(self.token_file)


SHARED = {
    "namespace": NamespaceOption,
    "producer": ProducerOption,
    "status": StatusOption,
    "tls": TlsOption,
    "tls_ca": CaOption,
    "client_cert": CertOption,
    "client_key": KeyOption,
    "token_file": TokenOption,
}
"""What every verb has besides its own: the fields of a Target."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a verb."""

    client: Client
    json: bool
    namespace: str | None
    """As the caller named it; None where he did not."""


def verb(app: typer.Typer, name: str) -> Callable[[Verb], Callable[..., None]]:
    """Make a verb of an async function that takes a Session first and returns an exit code (None: 0).

    Adds --json and the options of a Target to its own. The docstring is the help text.
    """

    def register(function: Verb) -> Callable[..., None]:
        signature = _signature(function)

        @functools.wraps(function)
        def command(ctx: typer.Context, json: bool = False, **arguments: Any) -> None:
            target = Target(**{name: arguments.pop(name) for name in SHARED}).over(ctx.obj or Target())
            code = asyncio.run(_run(target, json, lambda session: function(session, **arguments)))
            raise typer.Exit(code or 0)

        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
        app.command(name)(command)
        return command

    return register


async def _run(target: Target, as_json: bool, work: Callable[[Session], Coroutine[Any, Any, int | None]]) -> int | None:
    from headrace.errors import HeadraceError  # noqa: PLC0415

    try:
        client = target.client()
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
        *(inspect.Parameter(name, keyword, default=None, annotation=option) for name, option in SHARED.items()),
    ]
    named = [one.replace(kind=keyword) for one in own]
    return inspect.Signature([context, *named, *shared])
