"""Every live event lost on its way to the status service: watchers still get all events, and end in time (G6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace import Client
from headrace.v1 import event_pb2, task_pb2
from headrace_core.stack.dev import Endpoints
from headrace_core.stack.logins import as_service
from headrace_core.stack.logs import StackLog
from headrace_core.stack.services import Service, inherited_environment, loopback
from tests.e2e.event_dropper import EventDropper

WITHIN = 3.0
"""Seconds after the end of its task in which a watch ends: the promise, not a measurement."""


@dataclass(frozen=True)
class Deaf:
    """A client whose status service hears no live event."""

    client: Client
    wire: EventDropper


@asynccontextmanager
async def status_process(endpoints: Endpoints, nats_url: str, folder: Path) -> AsyncIterator[Service]:
    """One more status service, as a process of its own, that reaches NATS by `nats_url`."""
    environment = inherited_environment(folder) | {
        "HEADRACE_DATABASE_URL": as_service(endpoints.database_url, "status"),
        "HEADRACE_NATS_URL": nats_url,
        "HEADRACE_LISTEN": loopback(0),
        "HEADRACE_OPS_LISTEN": loopback(0),
        "HEADRACE_HTTP_LISTEN": loopback(0),
        "HEADRACE_LOG_FORMAT": "console",
    }
    log = StackLog(folder / "status.log")
    service = Service("status-deaf", "status", environment, log, folder)
    try:
        await service.start()
        yield service
    finally:
        await service.stop()
        log.close()


@pytest.fixture
async def deaf(endpoints: Endpoints, tmp_path: Path) -> AsyncIterator[Deaf]:
    port = int(endpoints.nats_url.rsplit(":", 1)[1])
    async with (
        EventDropper(port, "headrace.events.") as wire,
        status_process(endpoints, f"nats://{loopback(wire.port)}", tmp_path) as service,
        Client(producer=endpoints.producer, status=service.addresses.grpc) as client,
    ):
        yield Deaf(client, wire)


@dataclass
class Watched:
    """What a watch brought, and how many seconds after the task's last event it ended."""

    events: list[event_pb2.TaskEvent]
    late: float


async def watch_to_the_end(client: Client, task: task_pb2.Task) -> Watched:
    events = [event async for event in client.watch(task.id, after_sequence=0)]
    return Watched(events, time.time() - events[-1].time.ToNanoseconds() / 1e9)


def assert_whole(watched: Watched) -> None:
    assert [event.sequence for event in watched.events] == list(range(1, len(watched.events) + 1))
    assert watched.events[-1].state_change.terminal
    assert watched.late < WITHIN


async def test_every_live_event_lost_and_each_watch_gets_all_and_ends_in_time(deaf: Deaf) -> None:
    payloads = [{"steps": 8, "pause": 0.1 * (n % 7)} for n in range(30)]
    async with asyncio.timeout(50):
        tasks = await deaf.client.submit_many(payloads, kind="counts")
        sharded = await deaf.client.submit_many([{"count": 5}] * 5, kind="squares")
        watches = [watch_to_the_end(deaf.client, task) for task in [*tasks, *sharded] for _ in range(2)]
        for watched in await asyncio.gather(*watches):
            assert_whole(watched)
    assert deaf.wire.dropped, "the proxy has not seen a single live event: the test proves nothing"


async def test_every_live_event_lost_and_a_watch_by_label_finds_later_tasks(deaf: Deaf, tmp_path: Path) -> None:
    labels = {"watched": tmp_path.name}
    seen: dict[str, int] = {}
    ended: dict[str, float] = {}

    async def follow() -> None:
        async for event in deaf.client.watch_many(labels=labels):
            snapshot = event.snapshot.state if event.HasField("snapshot") else None
            if not event.HasField("snapshot"):
                assert event.sequence == seen[event.task_id] + 1
            seen[event.task_id] = event.sequence
            if event.state_change.terminal or snapshot == task_pb2.TASK_STATE_COMPLETED:
                ended[event.task_id] = time.time() - event.time.ToNanoseconds() / 1e9
            if len(ended) == 20:
                return

    async with asyncio.timeout(50):
        following = asyncio.create_task(follow())
        tasks = await deaf.client.submit_many([{"steps": 3, "pause": 0.2}] * 20, kind="counts", labels=labels)
        await following
    assert set(ended) == {task.id for task in tasks}
    assert max(ended.values()) < WITHIN
