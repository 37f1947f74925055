"""`headrace token`: makes tokens for the access file of the services."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from typing import Annotated

import typer

from headrace.cli import output
from headrace.cli.exits import usage_failure

app = typer.Typer(help="Tokens for the services' access file.", rich_markup_mode=None)
# 256 bits: twice what a token must have at least, as only its hash stands between a reader of the file and the token.
TOKEN_BYTES = 32
_NAME = re.compile(r"[!#-\[\]-~]{1,128}")
_GRANT = re.compile(r"(submit|read|operate|admin):([a-z0-9_-]{1,64}|\*)")


@app.callback(invoke_without_command=True)
def _token(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        output.write_line(ctx.get_help())


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; stands in the record of actions.")],
    grant: Annotated[
        list[str],
        typer.Option("--grant", metavar="ROLE:NAMESPACE", help="What it may do; repeatable.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a token: prints it once, and the entry for the access file, which does not contain it."""
    if not _NAME.fullmatch(name):
        raise usage_failure(f"{name[:80]!r} is no name: 1 to 128 visible ASCII characters, no quotes, no backslash")
    for text in grant:
        if not _GRANT.fullmatch(text):
            raise usage_failure(f"{text[:80]!r} is no grant: submit, read, operate or admin, a colon, a namespace or *")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    entry = f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"\ngrants = {json.dumps(grant)}'
    if as_json:
        found = {"token": token, "name": name, "sha256": digest, "grants": grant}
        output.write_line(json.dumps(found, separators=(",", ":")))
        return
    output.write_line(f"{token}\n\n{entry}")
