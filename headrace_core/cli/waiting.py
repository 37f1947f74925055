"""What the verbs that prepare an installation share: waiting for a server that is still starting, and SIGTERM."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

AGAIN_SECONDS = 0.5
LONGEST_WAIT = 3600.0
BY_SIGTERM = 128 + signal.SIGTERM

T = TypeVar("T")
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0.0,
        max=LONGEST_WAIT,
        help="How long to wait for what is not there yet; 0: not at all.",
    ),
]


async def until_there(
    work: Callable[[], Awaitable[T]], absent: tuple[type[Exception], ...], wait: float, verb: str
) -> T:
    """Return what `work` returns, called again every half second for `wait` seconds while it raises `absent`.

    The first such error is told on standard error, the last one raised. One call may outlast `wait`.
    """
    end = asyncio.get_running_loop().time() + wait
    told = False
    while True:
        try:
            return await work()
        except absent as error:
            if asyncio.get_running_loop().time() + AGAIN_SECONDS > end:
                raise
            if not told:
                typer.echo(f"{verb}: waiting for up to {wait:g} s: {error}", err=True)
                told = True
        await asyncio.sleep(AGAIN_SECONDS)


def end_on_sigterm() -> None:
    """End this process at once on SIGTERM.

    The first process of a container ignores a signal that it does not handle, and a cancelled statement of psycopg
    waits for its server for seconds. Whatever is in progress there is rolled back with its connection.
    """
    signal.signal(signal.SIGTERM, lambda _number, _frame: _end())


def _end() -> None:
    sys.stdout.flush()
    os._exit(BY_SIGTERM)
