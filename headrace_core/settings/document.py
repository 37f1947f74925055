"""docs/configuration.md, generated from the settings themselves: `python -m headrace_core.settings.document [path]`."""

import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from headrace_core.settings.environment import VARIABLES, ServiceSettings
from headrace_core.settings.explain import allowed
from headrace_core.settings.queues import Backoff, NamespaceSettings, QueueSettings, TopLevel

INTRODUCTION = """# Configuration

Generated from the code by `python -m headrace_core.settings.document`. Do not edit.

A service reads its environment and one file, `headrace.toml`, once, at its start. A wrong or unknown setting stops the
start with exit code 2 and one sentence that names it.
"""
ENVIRONMENT = """## Environment of the services

An empty variable counts as not set. An unknown variable that begins with `HEADRACE_` is an error; the ones that
Kubernetes makes itself (`HEADRACE_…_SERVICE_HOST`, `HEADRACE_…_PORT=tcp://…`) are ignored.
"""
FILE = """## headrace.toml

Looked for in `--config` (CLI), then `HEADRACE_CONFIG`, then the working directory; none is fine. Durations are seconds,
or texts like `"250ms"`, `"5s"`, `"5m"`, `"1h"`. Unknown keys are errors.

```toml
[[queues]]
name = "images"
max_attempts = 5
ack_wait = "10s"
backoff = { initial = "1s", maximum = "5m", factor = 2.0, jitter = 0.2 }
max_concurrency = 32
```
"""
QUEUES = """### `[[queues]]`

One table for each queue. Queue `default` always exists; declare it to change it.
"""
BACKOFF = """### `backoff`

The wait after a handler failure: `initial * factor^(failures - 1)`, at most `maximum`, spread by `jitter`.
"""

NAMESPACES = """### `[[namespaces]]`

One table for each namespace. If there is any, only these and `default` exist (UNKNOWN_NAMESPACE).
"""


def document() -> str:
    """The whole page."""
    by_field = {field: variable for variable, field in VARIABLES.items()}
    return "\n".join(
        [
            INTRODUCTION,
            ENVIRONMENT,
            *_table("variable", ServiceSettings, by_field),
            FILE,
            *_table("key", TopLevel, _own_names(TopLevel)),
            QUEUES,
            *_table("key", QueueSettings, _own_names(QueueSettings)),
            BACKOFF,
            *_table("key", Backoff, _own_names(Backoff)),
            NAMESPACES,
            *_table("key", NamespaceSettings, _own_names(NamespaceSettings)),
        ]
    )


def _own_names(model: type[BaseModel]) -> dict[str, str]:
    return {name: name for name in model.model_fields}


def _table(head: str, model: type[BaseModel], names: dict[str, str]) -> Iterator[str]:
    yield f"| {head} | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for name, shown in names.items():
        field = model.model_fields[name]
        yield f"| `{shown}` | {_default(field)} | {_allowed(field)} | {field.description} |"
    yield ""


def _allowed(field: FieldInfo) -> str:
    text = allowed(field)
    return f"`{text}`" if text.startswith("^") else text


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, SecretStr) or value in (None, "", PydanticUndefined):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value.is_integer():
        return f"`{int(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(document(), encoding="utf-8")
    else:
        sys.stdout.write(document())
