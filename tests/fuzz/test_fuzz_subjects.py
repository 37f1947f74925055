"""What anybody publishes on our subjects: no crash, no lost task, and what is no task becomes a dead letter."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from structlog.testing import capture_logs

from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.settings.environment import load_settings
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.publication import of_submitted
from status.app import StatusService
from tests.fixtures.consumers import ConsumerRig
from tests.fixtures.waiting import eventually
from tests.fuzz.raw_nats import Published, RawNats
from tests.fuzz.trying import attempt_all
from tests.fuzz.wire_forms import Sent, mutated
from tests.producer_harness import running_producer

QUEUE = QueueSettings(name="default", ack_wait=1.0)
TOML = 'queues = [{name = "default", ack_wait = "1s", backoff = {initial = "20ms"}}]\n'
WITHIN = 15.0
TASKS = [f"headrace.tasks.default.{level}".encode() for level in ("resume", "high", "normal", "low")]
ADVISORIES = [
    b"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.HEADRACE_TASKS.default-normal",
    b"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.HEADRACE_TASKS.x",
]
OTHERS = [b"headrace.events.wake", b"headrace.control.cancel", b"headrace.dlq.default.17-4", b"headrace.dlq.x.y>z"]
STRANGE = [
    b"headrace.tasks.nobody.normal",
    b"headrace.tasks.default.urgent",
    b"headrace.tasks.default.\xff\xfe",
    b"headrace.tasks.\xc3.normal",
    b"headrace.dlq.\xff.\xff",
    b"headrace.events.\xff",
]
REPLIES = [
    b"",
    b"a.b",
    b"\xff\xfe",
    b"$JS.ACK.x",
    b"$JS.ACK.HEADRACE_TASKS.default-normal.1.1.1.1.1",
    b"_INBOX.\xc3\x28",
]
HEADERS = [
    b"",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\nNats-Pending-Messages: x\r\n\r\n",
    b"NATS/1.0\r\n\xff\xfe: \xff\r\nA\r\n: b\r\n\r\n",
    b"NATS/1.0\r\nNats-Msg-Id: \xff\r\n\r\n",
    b"NATS/1.0\r\ntraceparent: \xff" + b"0" * 3000 + b"\r\n\r\n",
]
NUMBERS: list[Any] = [
    -1,
    0,
    1,
    -2,
    -3,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**30,
    1.5,
    1e308,
    math.inf,
    math.nan,
    True,
    None,
    "1",
    "x",
    [1],
    {},
]


def task_bodies(task: str) -> SearchStrategy[bytes]:
    """Bodies that are nearly those of a task, this one's or another's."""
    number = st.sampled_from(NUMBERS) | st.integers()
    whose = st.sampled_from([task, str(uuid4()), "", "x", task.upper(), f"{{{task}}}", 17, None, "\ud800"])
    content = st.fixed_dictionaries(
        {}, optional={"task": whose, "unit": number, "dispatch": number, "probe": number, "extra": st.text(max_size=5)}
    )
    valid = json.dumps({"task": str(uuid4()), "unit": -1, "dispatch": 1}).encode()
    return st.one_of(
        st.builds(
            lambda whom, unit, dispatch: json.dumps({"task": whom, "unit": unit, "dispatch": dispatch}).encode(),
            whose,
            number,
            number,
        ),
        content.map(lambda found: json.dumps(found).encode()),
        mutated(st.just(valid)),
        st.binary(max_size=60),
        st.sampled_from(
            [
                b"",
                b'"probe"',
                b'["probe"]',
                Sent(b"[" * 4000),
                b"null",
                Sent(b"\xff" * 4000),
                b"{}",
                Sent(b'"' + b"x" * 3000 + b'"'),
            ]
        ),
    )


def advisory_bodies() -> SearchStrategy[bytes]:
    """Bodies that are nearly those of the server's advisories."""
    times = st.sampled_from(
        ["2026-01-01T00:00:00.1Z", "2999-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "x", "", 5, None]
    )
    durable = st.sampled_from(
        ["default-normal", "default-resume", "-normal", "x", "default-\0", "\ud800-normal", 5, None]
    )
    content = st.fixed_dictionaries(
        {"consumer": durable, "stream_seq": st.sampled_from(NUMBERS) | st.integers(0, 50), "timestamp": times}
    )
    return (
        content.map(lambda found: json.dumps(found).encode()) | st.binary(max_size=60) | st.just(Sent(b"[" * 100_000))
    )


def hostile_messages(task: str) -> SearchStrategy[Published]:
    """Anything on any subject that a service listens to."""
    wakes = st.binary(max_size=100) | st.integers(0, 2**64 - 1).map(
        lambda number: b"0123456789abcdef" + number.to_bytes(8, "big")
    )
    reply, headers = st.sampled_from(REPLIES), st.sampled_from(HEADERS)
    return st.one_of(
        st.builds(Published, st.sampled_from(TASKS), task_bodies(task), reply, headers),
        st.builds(Published, st.sampled_from(ADVISORIES), advisory_bodies(), reply, headers),
        st.builds(Published, st.sampled_from(OTHERS), wakes | st.just(Sent(b"\0" * 900_000)), reply, headers),
        st.builds(Published, st.sampled_from(STRANGE), task_bodies(task) | wakes, reply, headers),
    )


@pytest.mark.timeout(180)
async def test_nothing_that_is_published_stops_anybody_or_loses_a_task(
    request: pytest.FixtureRequest, database_url: str, nats_url: str, tmp_path: Path
) -> None:
    await apply_topology(nats_url, StreamNames(), [QUEUE])
    rig = ConsumerRig(database_url, nats_url, tmp_path)
    await rig.open()
    status = StatusService(_status_settings(database_url, nats_url))
    try:
        async with running_producer(database_url, nats_url, queues=[QUEUE]) as producer:
            await rig.consumer(toml=TOML)
            await status.start()
            with capture_logs() as lines:
                await _publish_and_work(request, rig, nats_url)
                await _everything_is_taken(rig)
            said = [line for line in lines if line["log_level"] in ("error", "critical")]
            assert not said, said[:3]
            assert producer.service.problems() == [] == status.problems()
            await status.drain()
    finally:
        await status.stop()
        await rig.close()


async def _publish_and_work(request: pytest.FixtureRequest, rig: ConsumerRig, nats_url: str) -> None:
    """After each handful of messages a task completes: in a thread, because hypothesis does not await."""
    loop = asyncio.get_running_loop()
    first = await rig.submit("double", {"n": 1}, publish=False)

    def run(work: Callable[[], Awaitable[Any]]) -> Any:
        async def once() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(once(), loop).result(WITHIN + 5)

    def publish_all() -> None:
        with RawNats(nats_url) as client:

            def one(messages: list[Published]) -> None:
                for message in messages:
                    client.publish(message)
                run(lambda: _completes(rig))

            attempt_all(
                request,
                st.lists(hostile_messages(str(first.id)), min_size=5, max_size=30),
                one,
                inputs=40,
                shrink=False,
            )

    await asyncio.to_thread(publish_all)
    await rig.publish([of_submitted(first)])
    assert await rig.result(first, WITHIN) is not None


async def _completes(rig: ConsumerRig) -> None:
    task = await rig.submit("double", {"n": 21})
    assert (await rig.result(task, WITHIN))["doubled"] == 42


async def _everything_is_taken(rig: ConsumerRig) -> None:
    """Nothing stays in the levels of the queue: acknowledged, terminated or buried."""
    assert rig.bus is not None
    names = rig.names

    async def waiting() -> int:
        assert rig.bus is not None
        info = await rig.bus.request(
            f"$JS.API.STREAM.INFO.{names.tasks}", {"subjects_filter": "headrace.tasks.default.*"}
        )
        found = info["state"].get("subjects") or {}
        return sum(found.get(subject.decode(), 0) for subject in TASKS)

    async def nothing_waits() -> bool:
        return await waiting() == 0

    await eventually(nothing_waits, within=60, what="the end of every message")
    (counted,) = await rig.db.fetch("select count(*) from headrace_core.dead_letters where task_id is null")
    assert counted["count"] > 0


def _status_settings(database_url: str, nats_url: str) -> Any:
    environ = {
        "HEADRACE_DATABASE_URL": database_url,
        "HEADRACE_NATS_URL": nats_url,
        "HEADRACE_HTTP_LISTEN": "127.0.0.1:0",
    }
    return load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/"))
