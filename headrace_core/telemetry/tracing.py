"""Traces, switched by the standard OTEL_ variables: `spans` is what makes them, and None where nothing is traced.

Off is the default and costs one comparison: `if tracing.spans is not None`. Nothing of OpenTelemetry is imported then,
so nothing of it may be imported here at the top.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace_core.settings.errors import SettingsError

if TYPE_CHECKING:
    from headrace_core.telemetry.exporting import Export
    from headrace_core.telemetry.spans import Spans

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
FLUSH_SECONDS = 2.0
"""How long a stop waits for the last spans, within the grace period."""

spans: Spans | None = None
_export: Export | None = None


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for traces: an OTLP endpoint, or OTEL_TRACES_EXPORTER=otlp.

    Raises SettingsError for an exporter or a protocol that there is not.
    """
    exporter = _value(environ, "OTEL_TRACES_EXPORTER")
    if _value(environ, "OTEL_SDK_DISABLED") == "true" or exporter == "none":
        return False
    if exporter not in ("", "otlp"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER is {exporter!r}; it must be otlp or none")
    wanted = exporter == "otlp" or any(_value(environ, name) for name in ENDPOINTS)
    protocol = next(((name, _value(environ, name)) for name in PROTOCOLS if _value(environ, name)), None)
    if wanted and protocol is not None and protocol[1] != "grpc":
        raise SettingsError(f"{protocol[0]} is {protocol[1]!r}; spans are sent by grpc only (port 4317)")
    return wanted


def start(service: str, environ: Mapping[str, str]) -> None:
    """Make spans from here on, if `environ` asks for them. Before anything is built that looks at `spans`.

    `service` is producer, consumer or status. Raises SettingsError for variables that cannot work.
    """
    global spans, _export  # noqa: PLW0603 - the one switch; what looks at it runs in every layer
    if not is_wanted(environ):
        return
    from headrace_core.telemetry.exporting import Export  # noqa: PLC0415 - nothing of it where nothing is traced
    from headrace_core.telemetry.spans import Spans  # noqa: PLC0415

    try:
        _export = Export.from_environment(environ)
        spans = Spans.of(service, environ, _export)
    except (ValueError, OSError) as error:
        raise SettingsError(f"the OTEL_ variables cannot work: {error}") from error


def hurry() -> None:
    """Send what there is without waiting for more, in the background: this process may be killed soon."""
    if _export is not None:
        _export.hurry()


async def stop(within: float) -> None:
    """Send the last spans, for at most `within` seconds, and make none any more. Idempotent."""
    global spans, _export
    export, _export, spans = _export, None, None
    if export is not None:
        await asyncio.to_thread(export.close, within)


def task_attributes(operation: str, task_id: object, namespace: str, queue: str, kind: str) -> dict[str, Any]:
    """What every span about a task says."""
    return {
        "messaging.system": "headrace",
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
        "headrace.task_id": str(task_id),
        "headrace.namespace": namespace,
        "headrace.queue": queue,
        "headrace.kind": kind,
    }


def _value(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip().lower()
