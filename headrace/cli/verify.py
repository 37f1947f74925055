"""`headrace verify`: does a fresh installation do its work? What `helm test` runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeAlias
from urllib.parse import urlsplit

import typer

from headrace.cli import output
from headrace.cli.exits import Failure, usage_failure
from headrace.cli.session import Session, verb

if TYPE_CHECKING:
    from headrace.cli.checks import Finding

# A check gets so much even where those before it have used up the time: it may say why they had to.
LEAST_SECONDS = 2.0

Check: TypeAlias = "Callable[[float], Awaitable[Finding]]"


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    verb(app, "verify")(verify)


async def verify(
    session: Session,
    http: Annotated[
        str | None, typer.Option("--http", metavar="URL", help="Check the status service's HTTP side there, too.")
    ] = None,
    within: Annotated[
        float, typer.Option("--within", metavar="SECONDS", min=1.0, max=3600.0, help="For all checks together.")
    ] = 120.0,
    without_analysis: Annotated[
        bool, typer.Option("--without-analysis", help="Leave ai.analyze out: there is no model.")
    ] = False,
) -> None:
    """Check an installation: an echo, an analysis, the system's status. Exit code 0 if all is well.

    What is still starting is waited for. A degraded system is well enough: its problems are printed.
    """
    if http is not None and not http.startswith(("http://", "https://")):
        raise usage_failure(f"--http: {http!r} does not begin with http:// or https://")
    _refuse_to_shout(session, http)
    end = asyncio.get_running_loop().time() + within
    failed = [
        name
        for name, check in _checks(session, http, without_analysis=without_analysis)
        if not await _run(session, name, check, end)
    ]
    if failed:
        raise Failure(f"verify: failed: {', '.join(failed)}")


def _refuse_to_shout(session: Session, http: str | None) -> None:
    """The token goes to the HTTP side too, and not unencrypted over a network."""
    from headrace.bearer import refuse_to_shout  # noqa: PLC0415 - gRPC, which --help does not need

    if http is None or http.startswith("https://") or session.client.config.bearer is None:
        return
    try:
        refuse_to_shout(urlsplit(http).netloc.rpartition("@")[2], "--http")
    except ValueError as error:
        raise usage_failure(str(error)) from error


def _checks(session: Session, http: str | None, *, without_analysis: bool) -> list[tuple[str, Check]]:
    from headrace.cli import checks  # noqa: PLC0415 - gRPC, which --help does not need

    client = session.client
    chosen: list[tuple[str, Check]] = [("echo", lambda deadline: checks.check_echo(client, deadline))]
    if not without_analysis:
        chosen.append(("analysis", lambda deadline: checks.check_analysis(client, deadline)))
    chosen.append(("system", lambda deadline: checks.check_system(client, deadline)))
    if http is not None:
        chosen.append(("http", lambda deadline: checks.check_http(http, deadline, client.config)))
    return chosen


async def _run(session: Session, name: str, check: Check, end: float) -> bool:
    """Run one check and print its line."""
    from headrace.cli.checks import Trouble  # noqa: PLC0415

    clock = asyncio.get_running_loop().time
    began = clock()
    try:
        finding = await check(max(end, began + LEAST_SECONDS))
        ok, detail, problems = True, finding.detail, finding.problems
    except Trouble as trouble:
        ok, detail, problems = False, str(trouble), ()
    seconds = clock() - began
    if session.json:
        line = {"check": name, "ok": ok, "seconds": round(seconds, 3), "detail": detail, "problems": list(problems)}
        output.write_line(json.dumps(line, ensure_ascii=False, separators=(",", ":")))
        return ok
    output.write_line(f"{name:<8}  {'ok' if ok else 'FAILED':<6}  {seconds:6.2f} s  {detail}")
    for problem in problems:
        output.write_line(f"{'':8}  ! {problem}")
    return ok
