"""`headrace dev` without its command line: run the stack until a signal, announce it on standard output."""

import asyncio
import signal
from collections.abc import Callable
from typing import TextIO

from headrace_core.stack.dev import Endpoints, LocalStack, StackOptions

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal:
    """Cancels the current task at the first signal; later ones find the stack stopping already."""

    def __init__(self) -> None:
        self.asked = False
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def install(self) -> None:
        """Take over SIGTERM and SIGINT for the running loop."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._ask)

    def _ask(self) -> None:
        if not self.asked:
            self.asked = True
            self._task.cancel("stop asked for by a signal")


async def serve(options: StackOptions, announce: Callable[[Endpoints], None], echo: TextIO) -> None:
    """Run the stack until SIGTERM or SIGINT, then stop it cleanly and return.

    `announce` is called once, when everything serves. `echo` gets the log. Raises StackError.
    """
    stop = StopOnSignal()
    stop.install()
    try:
        async with LocalStack(options.data_dir, options=options, echo=echo) as stack:
            announce(stack.endpoints)
            await stack.failure()
    except asyncio.CancelledError:
        if not stop.asked:
            raise


def lines(endpoints: Endpoints) -> str:
    """Return what standard output shows: the addresses and, last, `ready`."""
    rows = {
        "producer": endpoints.producer,
        "status": endpoints.status,
        "http": endpoints.http,
        "database": endpoints.database_url,
        "nats": endpoints.nats_url,
    }
    return "".join(f"{name:<9} {value}\n" for name, value in rows.items()) + "ready\n"
