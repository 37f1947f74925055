"""A process that makes load: started and made ready, then let go, then asked what it saw."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from types import TracebackType
from typing import Any, Self

from headrace_core.stack.child import BOUND_EXEC

READY_SECONDS = 120.0
RESULT_SECONDS = 900.0
GOODBYE_SECONDS = 5.0
END_SECONDS = 10.0
LINE_LIMIT = 64 * 1024 * 1024


class Worker:
    """An asynchronous context manager around `python -m MODULE`, which runs `bench.gate.run`.

    `arguments` are the keyword arguments of its load. It dies with us.
    """

    def __init__(self, module: str, **arguments: Any) -> None:
        self._module = module
        self._arguments = arguments
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        tie = [sys.executable, "-I", "-S", str(BOUND_EXEC), str(os.getpid()), str(int(signal.SIGKILL))]
        self._process = await asyncio.create_subprocess_exec(
            *tie,
            *(sys.executable, "-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT,
        )
        assert self._process.stdin is not None
        # Not on the command line: 10,000 ids do not fit there.
        self._process.stdin.write(json.dumps(self._arguments).encode() + b"\n")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # whoever still waits for the word ends by this
        try:
            await asyncio.wait_for(self._process.wait(), GOODBYE_SECONDS if kind is None else 0.0)
        except TimeoutError:
            self._process.kill()
            await asyncio.wait_for(self._process.wait(), END_SECONDS)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def ready(self) -> None:
        """Wait until it has prepared everything."""
        await self.told("ready")

    def go(self) -> None:
        """Let it start."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def result(self) -> dict[str, Any]:
        """Wait for what it saw."""
        found: dict[str, Any] = await self.told("result", RESULT_SECONDS)
        return found

    async def told(self, name: str, within: float = READY_SECONDS) -> Any:
        """Wait for the next line, which must be about `name`. Raises RuntimeError."""
        assert self._process.stdout is not None
        async with asyncio.timeout(within):
            line = await self._process.stdout.readline()
        message = json.loads(line) if line else {}
        if name not in message:
            raise RuntimeError(f"{self._module} ended before it was {name}; what it wrote stands above")
        return message[name]


async def loaded(module: str, **arguments: Any) -> dict[str, Any]:
    """Run a load process from its start to its result."""
    async with Worker(module, **arguments) as worker:
        await worker.ready()
        worker.go()
        return await worker.result()
