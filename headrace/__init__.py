"""Headrace: submit long tasks, watch them live, and write the handlers that run them.

Names load on first use: a handler module does not pay for the client, and `headrace --help` not for gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from headrace import errors as errors
    from headrace.client import Client as Client
    from headrace.errors import HeadraceError as HeadraceError
    from headrace.handlers import NonRetryable as NonRetryable
    from headrace.handlers import RetryAfter as RetryAfter
    from headrace.handlers import ShardedHandler as ShardedHandler
    from headrace.handlers import SyncTaskContext as SyncTaskContext
    from headrace.handlers import TaskContext as TaskContext
    from headrace.handlers import handler as handler
    from headrace.sync import SyncClient as SyncClient
    from headrace.tls import Tls as Tls

_HOME = {
    "Client": "headrace.client",
    "HeadraceError": "headrace.errors",
    "NonRetryable": "headrace.handlers",
    "RetryAfter": "headrace.handlers",
    "ShardedHandler": "headrace.handlers",
    "SyncClient": "headrace.sync",
    "SyncTaskContext": "headrace.handlers",
    "TaskContext": "headrace.handlers",
    "Tls": "headrace.tls",
    "handler": "headrace.handlers",
}

__all__ = [
    "Client",
    "HeadraceError",
    "NonRetryable",
    "RetryAfter",
    "ShardedHandler",
    "SyncClient",
    "SyncTaskContext",
    "TaskContext",
    "Tls",
    "__version__",
    "errors",
    "handler",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("headrace.errors")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
