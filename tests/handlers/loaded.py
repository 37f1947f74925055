"""A handler that tells what its consumer has imported."""

import sys
from typing import Any

from headrace import SyncTaskContext, TaskContext, handler


def of_opentelemetry() -> list[str]:
    return sorted(name for name in sys.modules if name.startswith("opentelemetry"))


@handler("loaded")
async def loaded(ctx: TaskContext, input: dict[str, Any]) -> list[str]:
    return of_opentelemetry()


@handler("loaded-in-process", execution="process")
def loaded_in_process(ctx: SyncTaskContext, input: dict[str, Any]) -> list[str]:
    return of_opentelemetry()
