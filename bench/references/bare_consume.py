"""The bare loop's second process: pull, claim, complete, acknowledge."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import psycopg

from bench.gate import Gate, run
from bench.references.bare import BATCH, DURABLE, SECOND, STREAM, connected
from bench.references.nats_wire import Wire, new_inbox

DONE_SECONDS = 600.0
EXPIRES_SECONDS = 30
REQUESTS = 4
CLAIM = b"""
update bare set state = 1, epoch = epoch + 1 where id = any(%b::uuid[]) and state = 0 returning id, epoch, payload::text
"""
COMPLETE = b"""
update bare b set state = 2, result = i.result::json, ended_at = now()
from unnest(%b::uuid[], %b::int[], %b::text[]) as i (id, epoch, result)
where b.id = i.id and b.epoch = i.epoch and b.state = 1
"""


class Consumer:
    """Keeps pull requests open and hands what has come, whatever it is, to the next free connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._inbox = new_inbox()
        self._arrived: list[tuple[bytes, bytes]] = []
        self._some = asyncio.Event()
        self._asked = 0
        self.completed = 0
        wire.subscribe(self._inbox, self._receive)
        self._ask()

    def _ask(self) -> None:
        body = json.dumps({"batch": BATCH, "expires": EXPIRES_SECONDS * SECOND}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{DURABLE}".encode()
        while self._asked <= BATCH * (REQUESTS - 1):
            self._wire.write(b"PUB %b %b %d\r\n%b\r\n" % (subject, self._inbox.encode(), len(body), body))
            self._asked += BATCH

    def _receive(self, _subject: bytes, reply: bytes, data: bytes) -> None:
        if not reply:
            raise RuntimeError("a pull request expired: the bare loop stood still")
        self._asked -= 1
        self._arrived.append((reply, data))
        self._some.set()
        self._ask()

    async def work(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        """Take up to a batch, again and again, until cancelled."""
        while True:
            await self._some.wait()
            batch, self._arrived = self._arrived[:BATCH], self._arrived[BATCH:]
            if not self._arrived:
                self._some.clear()
            if batch:
                await self._run(connection, batch)

    async def _run(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], batch: list[tuple[bytes, bytes]]
    ) -> None:
        ids = [uuid.UUID(data.decode()) for _, data in batch]
        claimed = await (await connection.execute(CLAIM, (ids,))).fetchall()
        results = [json.dumps(json.loads(text)) for _, _, text in claimed]
        done = await connection.execute(COMPLETE, ([row[0] for row in claimed], [row[1] for row in claimed], results))
        self._wire.write(b"".join(b"PUB %b 4\r\n+ACK\r\n" % reply for reply, _ in batch))
        self.completed += done.rowcount


async def load(
    gate: Gate, *, database_url: str, nats_url: str, tasks: int, warm_up: int, in_flight: int
) -> dict[str, Any]:
    """Consume `warm_up` tasks, then, at the word, `tasks`."""
    consumer = Consumer(await Wire.connect(nats_url))
    workers = [
        asyncio.create_task(consumer.work(await connected(database_url)), name=f"work-{number}")
        for number in range(in_flight)
    ]
    await _completed(consumer, warm_up, workers)
    await gate.opened()
    cpu = time.process_time()
    await _completed(consumer, warm_up + tasks, workers)
    return {"ended": time.monotonic(), "cpu": time.process_time() - cpu}


async def _completed(consumer: Consumer, wanted: int, workers: list[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(DONE_SECONDS):
        while consumer.completed < wanted:
            for worker in workers:
                if worker.done():
                    worker.result()
            await asyncio.sleep(0.002)


if __name__ == "__main__":
    run(load)
