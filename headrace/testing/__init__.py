"""The test kit: handlers in unit tests without a broker, and the whole local stack as pytest fixtures.

    from headrace.testing import run_handler

    async def test_resize():
        run = await run_handler(resize, {"url": "…", "width": 640})
        assert run.result == {"height": 480}

Nothing of this needs a server; the fixtures (`headrace_stack`, `headrace_client`) need the server extra. Names load on
first use: pytest loads the plugin in this package in every run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.handler_values import InputRefused as InputRefused
    from headrace.handler_values import ResultRefused as ResultRefused
    from headrace.testing.records import BatchRun as BatchRun
    from headrace.testing.records import HandlerRun as HandlerRun
    from headrace.testing.records import Progress as Progress
    from headrace.testing.records import ShardedRun as ShardedRun
    from headrace.testing.records import ShardRun as ShardRun
    from headrace.testing.running import HandlerDidNotEnd as HandlerDidNotEnd
    from headrace.testing.running import run_batch as run_batch
    from headrace.testing.running import run_handler as run_handler
    from headrace.testing.sharded import run_merge as run_merge
    from headrace.testing.sharded import run_plan as run_plan
    from headrace.testing.sharded import run_shard as run_shard
    from headrace.testing.sharded import run_sharded as run_sharded
    from headrace.testing.stack import Stack as Stack

_HOME = {
    "BatchRun": "headrace.testing.records",
    "HandlerDidNotEnd": "headrace.testing.running",
    "HandlerRun": "headrace.testing.records",
    "InputRefused": "headrace.handler_values",
    "Progress": "headrace.testing.records",
    "ResultRefused": "headrace.handler_values",
    "ShardRun": "headrace.testing.records",
    "ShardedRun": "headrace.testing.records",
    "Stack": "headrace.testing.stack",
    "run_batch": "headrace.testing.running",
    "run_handler": "headrace.testing.running",
    "run_merge": "headrace.testing.sharded",
    "run_plan": "headrace.testing.sharded",
    "run_shard": "headrace.testing.sharded",
    "run_sharded": "headrace.testing.sharded",
}

__all__ = [
    "BatchRun",
    "HandlerDidNotEnd",
    "HandlerRun",
    "InputRefused",
    "Progress",
    "ResultRefused",
    "ShardRun",
    "ShardedRun",
    "Stack",
    "run_batch",
    "run_handler",
    "run_merge",
    "run_plan",
    "run_shard",
    "run_sharded",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'headrace.testing' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
