"""The load process's side of a `bench.worker.Worker`: get ready, wait for the start, print what was seen."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import uvloop

Load = Callable[..., Awaitable[Mapping[str, Any]]]


class Gate:
    """Between preparation and what is measured."""

    async def opened(self) -> None:
        """Say that we are ready and wait for the word; the parent's end ends us as well."""
        say({"ready": True})
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            raise SystemExit("the benchmark is gone")


def say(message: Mapping[str, Any]) -> None:
    """Tell the parent, in one line."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def run(load: Load) -> None:
    """Call `load(gate, **arguments)` with the JSON object of the first line, on uvloop, and tell its result."""
    arguments = json.loads(sys.stdin.readline())

    async def main() -> None:
        say({"result": await load(Gate(), **arguments)})

    uvloop.run(main())
