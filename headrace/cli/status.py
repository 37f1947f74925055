"""`headrace status`: is the system well, is the inference back end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import describe, output
from headrace.cli.session import Session, verb

if TYPE_CHECKING:
    from headrace.v1 import status_pb2


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    verb(app, "status")(status)


async def status(
    session: Session,
    inference: Annotated[bool, typer.Option("--inference", help="Only the inference back end.")] = False,
) -> None:
    """Show how the system is, and the inference back end. With --json: the system's status only."""
    if not inference:
        system = await session.client.system_status()
        if session.json:
            output.write_message(system)
            return
        _write_system(system)
    back_end = await session.client.inference_status()
    if session.json:
        output.write_message(back_end)
        return
    output.write_line("")
    _write_inference(back_end)


def _write_system(system: status_pb2.SystemStatus) -> None:
    output.write_fields(
        [
            ("system", health_name(system.health)),
            ("mode", mode_name(system.mode)),
            ("task stream", _yes(system.has_task_stream)),
            ("dead letter stream", _yes(system.has_dead_letter_stream)),
            ("fallback", _yes(system.has_fallback)),
            ("consumers", str(len(system.consumers))),
        ]
    )
    for problem in system.problems:
        output.write_line(f"! {problem}")
    if system.queues:
        output.write_line("")
        output.write_table(describe.QUEUE_COLUMNS, [describe.queue_row(queue) for queue in system.queues])


def _write_inference(back_end: status_pb2.InferenceStatus) -> None:
    latency = back_end.latency.seconds * 1000 + back_end.latency.nanos / 1e6
    output.write_fields(
        [
            ("inference", health_name(back_end.health)),
            ("back end", back_end.backend),
            ("model", back_end.model),
            ("latency", f"{latency:.0f} ms" if latency else ""),
            ("checked", describe.time_text(back_end.check_time)),
            ("error", back_end.last_error),
        ]
    )


def health_name(health: status_pb2.HealthState.ValueType) -> str:
    """Return HEALTHY and the like."""
    from headrace.v1.status_pb2 import HealthState  # noqa: PLC0415 - not for --help

    return HealthState.Name(health).removeprefix("HEALTH_STATE_").replace("UNSPECIFIED", "UNKNOWN")


def mode_name(mode: status_pb2.DispatchMode.ValueType) -> str:
    """Return BROKER, FALLBACK or POSTGRES."""
    from headrace.v1.status_pb2 import DispatchMode  # noqa: PLC0415 - not for --help

    return DispatchMode.Name(mode).removeprefix("DISPATCH_MODE_").replace("UNSPECIFIED", "UNKNOWN")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
