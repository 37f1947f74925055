"""The bare loop's first process: insert, then publish."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import psycopg

from bench.gate import Gate, run
from bench.payloads import payload
from bench.references.bare import BATCH, SUBJECT, connected
from bench.references.nats_wire import Wire, new_inbox

WINDOW_SECONDS = 10.0
INSERT = (
    b"insert into bare (id, payload) select id, payload::json from unnest(%b::uuid[], %b::text[]) as a (id, payload)"
)


class Publisher:
    """Publishes windows of ids and counts their answers."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._inbox = new_inbox()
        self._windows: list[tuple[set[bytes], asyncio.Future[None]]] = []
        self._waiting: dict[bytes, tuple[set[bytes], asyncio.Future[None]]] = {}
        wire.subscribe(f"{self._inbox}.*", self._answered)

    async def publish(self, ids: Sequence[uuid.UUID]) -> None:
        """Publish one window and wait until the stream has all of it."""
        window = ({one.hex.encode() for one in ids}, asyncio.get_running_loop().create_future())
        commands = []
        inbox, subject = self._inbox.encode(), SUBJECT.encode()
        for token in window[0]:
            head = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % token
            self._waiting[token] = window
            commands.append(
                b"HPUB %b %b.%b %d %d\r\n%b%b\r\n" % (subject, inbox, token, len(head), len(head) + 32, head, token)
            )
        self._wire.write(b"".join(commands))
        async with asyncio.timeout(WINDOW_SECONDS):
            await window[1]

    def _answered(self, subject: bytes, _reply: bytes, data: bytes) -> None:
        token = subject[len(self._inbox) + 1 :]
        missing, complete = self._waiting.pop(token)
        if b'"error"' in data:
            raise RuntimeError(f"the stream refused {token!r}: {data!r}")
        missing.discard(token)
        if not missing:
            complete.set_result(None)


async def submit(
    connections: Sequence[psycopg.AsyncConnection[tuple[Any, ...]]], publisher: Publisher, tasks: int
) -> None:
    """Submit `tasks` tasks, a batch in flight on each connection."""
    starts = iter(range(0, tasks, BATCH))

    async def one_by_one(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        for start in starts:
            numbers = range(start, min(start + BATCH, tasks))
            ids = [uuid.uuid4() for _ in numbers]
            payloads = [payload(number).decode() for number in numbers]
            await connection.execute(INSERT, (ids, payloads))
            await publisher.publish(ids)

    async with asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(one_by_one(connection))


async def load(
    gate: Gate, *, database_url: str, nats_url: str, tasks: int, warm_up: int, in_flight: int
) -> dict[str, Any]:
    """Submit `warm_up` tasks, then, at the word, `tasks`."""
    publisher = Publisher(await Wire.connect(nats_url))
    connections = [await connected(database_url) for _ in range(in_flight)]
    await submit(connections, publisher, warm_up)
    await gate.opened()
    started, cpu = time.monotonic(), time.process_time()
    await submit(connections, publisher, tasks)
    return {"started": started, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    run(load)
