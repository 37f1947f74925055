"""The local stack as tests see it: where it is, and how to break it."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Stack(Protocol):
    """What the fixture `headrace_stack` is: real Postgres, nats-server and services, and the knobs that break them.

    The stack lives on a thread of its own, so the knobs work from any event loop; each is done when it returns. What
    stays broken is put right after the test.
    """

    @property
    def producer(self) -> str:
        """host:port of the producer."""

    @property
    def status(self) -> str:
        """host:port of the status service."""

    @property
    def http(self) -> str:
        """URL of the status service's HTTP side: /api/async-status, /api/ai-status."""

    @property
    def database_url(self) -> str:
        """URL of the database, for the views in the schema `headrace`."""

    @property
    def nats_url(self) -> str:
        """URL of the nats-server."""

    @property
    def log_file(self) -> Path:
        """The log of all parts."""

    @property
    def consumers(self) -> list[str]:
        """The names of the consumers: `consumer-1`, …"""

    def run(self, knob: Coroutine[Any, Any, T]) -> T:
        """Turn a knob from a test that is not async: `stack.run(stack.lose_broker())`."""

    async def lose_broker(self, *, with_data: bool = False) -> None:
        """Kill the nats-server; `with_data`: and delete its streams. It stays away until `restore_broker`."""

    async def restore_broker(self) -> None:
        """Start the nats-server again."""

    async def freeze_broker(self) -> None:
        """Stop the nats-server in its tracks (SIGSTOP): connections stay open and nothing answers, until
        `restore_broker`."""

    async def lose_database(self) -> None:
        """Kill Postgres; what was committed stays. It stays away until `restore_database`."""

    async def freeze_database(self) -> None:
        """Stop all processes of Postgres in their tracks (SIGSTOP) until `restore_database`."""

    async def restore_database(self) -> None:
        """Start Postgres again."""

    async def kill_consumer(self, running: str | None = None) -> str:
        """Kill -9 a consumer with its worker processes and return its name; it stays away until `start_consumer`.

        `running` is the id of a task, or the name of a consumer: the one that runs the task now; LookupError if none
        does. None: `consumer-1`.
        """

    async def stop_consumer(self, running: str | None = None) -> str:
        """Stop a consumer as a roll-out does (SIGTERM): it hands back what does not end. As `kill_consumer`."""

    async def freeze_consumer(self, running: str | None = None) -> str:
        """Stop a consumer in its tracks (SIGSTOP) until `start_consumer`: its leases run out. As `kill_consumer`."""

    async def start_consumer(self, name: str) -> None:
        """Start a consumer again, or let a frozen one go on. One that runs stays as it is."""

    async def deliver_again(self, task_id: str) -> None:
        """Put another message for the task into the stream: a duplicate delivery, whatever state the task is in.

        LookupError if there is no such task.
        """

    def crash_after_settle(self) -> AbstractAsyncContextManager[None]:
        """Inside, no acknowledgement reaches the broker; at the end every consumer is killed and started again.

        So whatever was settled inside is delivered once more: a consumer that dies between the commit and the
        acknowledgement.
        """

    async def until_acknowledged(self, *, within: float = 30.0) -> None:
        """Wait until every message has been delivered and acknowledged. TimeoutError after `within` seconds."""

    async def heal(self) -> None:
        """Start, or let go on, everything that was killed, stopped or frozen."""
