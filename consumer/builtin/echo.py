"""The kind `echo`: the smallest whole task, for smoke tests, benchmarks and a first try."""

from __future__ import annotations

from typing import Any

from headrace.handlers import TaskContext, handler


@handler("echo")
async def echo(ctx: TaskContext, input: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001  (handlers take a context)
    """Return `input` unchanged: whole numbers stay int, member order and nesting are kept."""
    return input
