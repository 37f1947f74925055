"""Streams and durables on the broker: made as declared, compared with what is declared, shown.

Spoken in raw JetStream API requests: nats-py's configuration classes lack some of the fields.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from headrace_core.bus.access import Access
from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import (
    LEVELS,
    NEVER_UPDATED,
    Declaration,
    Durable,
    Queue,
    Stream,
    StreamNames,
    declared,
    differences,
    durable_name,
)
from headrace_core.bus.errors import (
    BusUnavailable,
    ClusterTooSmall,
    RequestRefused,
    StreamMissing,
    TopologyError,
)

__all__ = [
    "LEVELS",
    "Declaration",
    "StreamNames",
    "TopologyRow",
    "apply",
    "apply_topology",
    "declared",
    "durable_name",
    "list_topology",
    "verify",
    "verify_topology",
]

CONNECT_SECONDS = 5.0
INSUFFICIENT_STORAGE = 10047
NO_SUITABLE_PEERS = 10005
NOT_CLUSTERED = 10074
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TopologyRow:
    """One durable, or a stream without any (`durable` is empty then). Counts are of messages."""

    stream: str
    subjects: tuple[str, ...]
    messages: int
    durable: str = ""
    pending: int = 0
    ack_pending: int = 0


async def apply(bus: Bus, declaration: Declaration, replicas: int | None = None) -> list[str]:
    """Create what is missing, update what differs, and return what was changed, one line each. Idempotent.

    `replicas`: for every stream; None makes new streams with one and leaves the others as they are. Nothing is
    ever deleted. Raises TopologyError for what cannot be changed in place, and the errors of `Bus.request`.
    """
    changes: list[str] = []
    for stream in declaration.streams:
        changes += await _apply_stream(bus, stream, replicas)
    found = {name: await consumers(bus, name) for name in _with_durables(declaration)}
    for durable in declaration.durables:
        changes += await _apply_durable(bus, durable, found[durable.stream].get(durable.name))
    return changes


async def verify(bus: Bus, declaration: Declaration) -> list[str]:
    """Return everything that is not as declared, one sentence each; empty when all is well. Changes nothing."""
    problems: list[str] = []
    for stream in declaration.streams:
        try:
            info = await stream_info(bus, stream.name)
        except StreamMissing:
            problems.append(f"stream {stream.name} is missing")
            continue
        problems += [f"stream {stream.name}: {line}" for line in differences(stream.config, info["config"])]
    found = {name: await _consumers_or_none(bus, name) for name in _with_durables(declaration)}
    for durable in declaration.durables:
        problems += _durable_problems(durable, found[durable.stream].get(durable.name))
    return problems


def _with_durables(declaration: Declaration) -> list[str]:
    return sorted({durable.stream for durable in declaration.durables})


def _durable_problems(durable: Durable, info: Json | None) -> list[str]:
    if info is None:
        return [f"durable {durable.name} of stream {durable.stream} is missing"]
    return [f"durable {durable.name}: {line}" for line in differences(durable.config, info["config"])]


async def stream_info(bus: Bus, stream: str) -> Json:
    """Return the server's account of a stream. Raises StreamMissing and the errors of `Bus.request`."""
    return await bus.request(f"$JS.API.STREAM.INFO.{stream}")


async def consumers(bus: Bus, stream: str) -> dict[str, Json]:
    """Return the server's account of a stream's consumers by name. Raises the errors of `Bus.request`."""
    found: dict[str, Json] = {}
    while True:
        page = await bus.request(f"$JS.API.CONSUMER.LIST.{stream}", {"offset": len(found)})
        before = len(found)
        found.update({info["name"]: info for info in page.get("consumers") or []})
        # A consumer deleted meanwhile makes pages overlap: an unfruitful page ends it as well.
        if len(found) >= page["total"] or len(found) == before:
            return found


async def _consumers_or_none(bus: Bus, stream: str) -> dict[str, Json]:
    try:
        return await consumers(bus, stream)
    except StreamMissing:
        return {}


async def _apply_stream(bus: Bus, stream: Stream, replicas: int | None) -> list[str]:
    try:
        found = (await stream_info(bus, stream.name))["config"]
    except StreamMissing:
        await _write(bus, f"$JS.API.STREAM.CREATE.{stream.name}", {**stream.config, "num_replicas": replicas or 1})
        return [f"stream {stream.name}: created"]
    wanted = dict(stream.config) if replicas is None else {**stream.config, "num_replicas": replicas}
    lines = differences(wanted, found)
    if not lines:
        return []
    fixed = [key for key in NEVER_UPDATED if found.get(key) != wanted[key]]
    if fixed:
        raise TopologyError(
            f"stream {stream.name} was made by somebody else: {'; '.join(lines)}. {', '.join(fixed)} cannot be "
            "changed in place; delete the stream (Headrace publishes its tasks again) or choose another prefix"
        )
    await _write(bus, f"$JS.API.STREAM.UPDATE.{stream.name}", {**found, **wanted})
    return [f"stream {stream.name}: updated, {line}" for line in lines]


async def _apply_durable(bus: Bus, durable: Durable, info: Json | None) -> list[str]:
    subject = f"$JS.API.CONSUMER.DURABLE.CREATE.{durable.stream}.{durable.name}"
    if info is None:
        await _ask(bus, subject, {"stream_name": durable.stream, "config": dict(durable.config)})
        return [f"durable {durable.name}: created"]
    lines = differences(durable.config, info["config"])
    if lines:
        config = {**info["config"], **durable.config}
        await _ask(bus, subject, {"stream_name": durable.stream, "config": config})
    return [f"durable {durable.name}: updated, {line}" for line in lines]


async def _write(bus: Bus, subject: str, config: Json) -> None:
    """Create or change a stream, and say what a cluster lacks for its copies."""
    try:
        await _ask(bus, subject, config)
    except TopologyError as error:
        refusal, copies = error.__cause__, config["num_replicas"]
        err_code = refusal.err_code if isinstance(refusal, RequestRefused) else 0
        if err_code == NOT_CLUSTERED:
            raise TopologyError(
                f"{config['name']}: {copies} copies need a cluster of at least {copies} servers, and this NATS is a "
                "single server: give --replicas 1, or start a cluster"
            ) from refusal
        if err_code == NO_SUITABLE_PEERS:
            raise ClusterTooSmall(
                f"{config['name']}: the NATS cluster has no {copies} servers with JetStream and room for a copy each: "
                f"start more servers, or give --replicas a smaller number ({error.message})"
            ) from refusal
        raise


async def _ask(bus: Bus, subject: str, payload: Json) -> None:
    try:
        await bus.request(subject, payload)
    except RequestRefused as error:
        hint = ""
        if error.err_code == INSUFFICIENT_STORAGE:
            hint = "; the streams reserve up to 2.1 GiB of JetStream storage: give the server a larger max_file"
        raise TopologyError(f"the server refuses {error.message}{hint}") from error


# -- for the command line: connect, do one thing, close --------------------------------------------------------------


@asynccontextmanager
async def _connected(nats_url: str, access: Access | None) -> AsyncIterator[Bus]:
    bus = Bus(nats_url, name="headrace-topology", access=access)
    try:
        if not await bus.connect(CONNECT_SECONDS):
            raise BusUnavailable(f"cannot connect to NATS within {CONNECT_SECONDS:g} s: {bus.problem}")
        if not bus.jetstream:
            raise BusUnavailable(bus.problem)
        yield bus
    finally:
        await bus.close()


async def apply_topology(
    nats_url: str,
    names: StreamNames,
    queues: Iterable[Queue],
    replicas: int | None = None,
    *,
    access: Access | None = None,
) -> list[str]:
    """Connect, `apply` what `queues` need, and return the changes. Raises BusError."""
    async with _connected(nats_url, access) as bus:
        return await apply(bus, declared(queues, names), replicas)


async def verify_topology(
    nats_url: str, names: StreamNames, queues: Iterable[Queue], *, access: Access | None = None
) -> list[str]:
    """Connect, `verify`, and return the problems. Raises BusError."""
    async with _connected(nats_url, access) as bus:
        return await verify(bus, declared(queues, names))


async def list_topology(nats_url: str, names: StreamNames, *, access: Access | None = None) -> list[TopologyRow]:
    """Connect and return what there is, declared or not. Raises BusError."""
    rows: list[TopologyRow] = []
    async with _connected(nats_url, access) as bus:
        for stream in (names.tasks, names.dead_letters, names.advisories):
            rows += await _rows(bus, stream)
    return rows


async def _rows(bus: Bus, stream: str) -> list[TopologyRow]:
    try:
        info = await stream_info(bus, stream)
        found = await consumers(bus, stream)
    except StreamMissing:
        return []
    subjects, messages = tuple(info["config"].get("subjects") or ()), info["state"]["messages"]
    if not found:
        return [TopologyRow(stream, subjects, messages)]
    return [
        TopologyRow(stream, subjects, messages, name, one["num_pending"], one["num_ack_pending"])
        for name, one in sorted(found.items())
    ]
