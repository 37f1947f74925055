"""The AI job: `ai.analyze`, its two back ends, and the health that the consumers report."""

from __future__ import annotations

import asyncio
from typing import Any

HEALTH_WITHIN_SECONDS = 15.0
"""The first call of the embedded back end loads the model: up to a second, more on a busy machine."""


async def inference_health() -> dict[str, Any]:
    """Ask the process's back end for a sign of life: backend, model, models, latencyMs, lastError (None: well).

    Never raises for a failing back end and returns within 15 s. Cheap enough for every half minute.
    """
    # Imported here: whoever only wants this package's name pays nothing for it.
    from pydantic import ValidationError  # noqa: PLC0415

    from consumer.builtin.ai.backend import process_backend  # noqa: PLC0415

    try:
        backend = process_backend()
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors(include_input=False))
        return _answer("unknown", "", [], None, f"the HEADRACE_AI_ settings are wrong: {problems}")
    try:
        async with asyncio.timeout(HEALTH_WITHIN_SECONDS):
            health = await backend.health()
    except TimeoutError:
        return _answer(backend.name, backend.model, [], None, f"no answer in {HEALTH_WITHIN_SECONDS:g} s")
    return _answer(health.backend, health.model, health.models, health.latency_ms, health.error)


def _answer(backend: str, model: str, models: list[str], latency: float | None, error: str | None) -> dict[str, Any]:
    return {"backend": backend, "model": model, "models": models, "latencyMs": latency, "lastError": error}
