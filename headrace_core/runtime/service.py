"""The contract between a service and the process that runs it."""

from typing import Protocol

from headrace_core.runtime.supervisor import Supervisor


class Service(Protocol):
    """Started once, drained once, stopped once, in this order; `stop` is also legal after a start that failed."""

    @property
    def supervisor(self) -> Supervisor:
        """The service's background tasks; a fatal failure there stops the process with exit code 1."""
        ...

    @property
    def grpc_address(self) -> str | None:
        """Where gRPC answers, host:port, once started; None: nowhere."""
        ...

    @property
    def http_address(self) -> str | None:
        """Where the public HTTP side answers, host:port, once started; None: nowhere."""
        ...

    def problems(self) -> list[str]:
        """What keeps the service from working, one sentence each; empty: ready. Local and quick: no I/O in here."""
        ...

    async def start(self) -> None:
        """Return when the service serves. Retries what may be away for a moment (Postgres); limit 60 s."""
        ...

    async def drain(self) -> None:
        """Take nothing new, finish or hand back what runs, within the grace period."""
        ...

    async def stop(self) -> None:
        """Release everything: tasks, connections, files. Limit 10 s."""
        ...
