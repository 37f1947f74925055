"""Keeping a part of the stack alive: started again when it ends by itself, with a growing, bounded delay."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable
from headrace_core.stack.child import describe_exit
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.tasks.deaths import report_death, worker_name

FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0
# A part that lived this long was fine: the next end is a new trouble, not the same one.
HEALTHY_SECONDS = 30.0


class Part(Protocol):
    """A server or service of the stack."""

    name: str

    async def start(self) -> None:
        """Start and wait until it serves; a running part stays as it is. Raises StackError."""

    async def stop(self) -> object:
        """Stop cleanly within a limit."""

    async def kill(self) -> None:
        """End at once."""

    async def wait(self) -> int:
        """Wait for the end."""


class Backoff:
    """Delays that double from `first` to `longest` seconds until `reset`."""

    def __init__(self, first: float = FIRST_DELAY, longest: float = LONGEST_DELAY) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def take(self) -> float:
        """Return this delay and make the next one longer."""
        delay = self._next
        self._next = min(self._next * 2, self._longest)
        return delay

    def reset(self) -> None:
        """Begin again with the first delay."""
        self._next = self._first


async def keep_alive(
    part: Part,
    log: StackLog,
    backoff: Backoff,
    clock: Callable[[], float],
    on_end: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Start `part` again whenever it ends, for ever; cancel it before stopping the part on purpose.

    `on_end` is awaited before each new start.
    """
    while True:
        begun = clock()
        code = await part.wait()
        if on_end is not None:
            await on_end()
        if clock() - begun > HEALTHY_SECONDS:
            backoff.reset()
        delay = backoff.take()
        log.line("stack", f"{part.name} ended ({describe_exit(code)}); starting it again in {delay:.1f} s")
        await asyncio.sleep(delay)
        try:
            await part.start()
        except StackError as error:
            log.line("stack", error.message)  # it has ended, so the next round waits longer and tries again


async def report_consumer(database_url: str, pid: int | None, log: StackLog) -> None:
    """Say in Postgres that a consumer's process has ended, so that nobody waits for its leases. At most about 2 s."""
    if pid is None:
        return
    database = Database(database_url, max_size=1)
    await database.open()
    try:
        if await report_death(database, worker_name(pid)):
            log.line("stack", f"the consumer with process id {pid} has died: its leases are taken over")
    except DatabaseUnavailable as error:
        log.line("stack", f"the death of process {pid} was not reported, so its leases run out: {error.message}")
    finally:
        await database.close()
