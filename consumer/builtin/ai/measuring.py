"""What inferences take and cost, as metrics of the consumer. Labels: the back end's name and how a call ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from consumer.builtin.ai.settings import AISettings
from headrace.handlers import NonRetryable, RetryAfter
from headrace_core.telemetry import metrics

_PER_PRICE = 1_000_000
"""Prices are for a million tokens."""


@contextmanager
def measured(backend: str) -> Iterator[None]:
    """Around one inference. Outcomes: ok, throttled, refused (repeating cannot help), cancelled, failed."""
    began, outcome = time.monotonic(), "failed"
    try:
        yield
        outcome = "ok"
    except RetryAfter:
        outcome = "throttled"
        raise
    except NonRetryable:
        outcome = "refused"
        raise
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    finally:
        metrics.inference_seconds.labels(backend, outcome).observe(time.monotonic() - began)


def count_usage(usage: Any, settings: AISettings) -> None:
    """Count what the server says a completion has used; None: it says nothing."""
    if usage is None:
        return
    prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
    metrics.inference_tokens_total.labels("prompt").inc(max(prompt, 0))
    metrics.inference_tokens_total.labels("completion").inc(max(completion, 0))
    cost = prompt * settings.prompt_price + completion * settings.completion_price
    metrics.inference_cost_total.inc(max(cost, 0) / _PER_PRICE)
