"""Asking before what cannot be undone; never where nobody could answer."""

from __future__ import annotations

import sys

import typer

from headrace.cli.exits import Failure, usage_failure


def confirmed(what: str) -> None:
    """Ask whether to do `what`. Raises Failure on no, and without asking where standard input is no terminal."""
    if not sys.stdin.isatty():
        raise usage_failure(f"this would {what}: say --yes, there is no terminal to ask at")
    if not typer.confirm(f"Really {what}?", err=True):
        raise Failure("nothing was done")
