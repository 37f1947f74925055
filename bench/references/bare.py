"""The bare loop: what Postgres, NATS and Python can do at most with a durable task, without any of the product.

Insert (durable, 500 in a statement, binary arrays), publish in windows with Nats-Msg-Id, pull, claim, complete with a
JSON result, acknowledge. Two processes on uvloop: one submits, one consumes. No gRPC, no leases, no events, no retries.
"""

from __future__ import annotations

from typing import Any

import psycopg

from bench.references.nats_wire import Wire

STREAM, SUBJECT, DURABLE = "BARE", "bare.tasks", "bare"
BATCH = 500
SECOND = 1_000_000_000

TABLE = """
create table bare (
    id uuid primary key, state smallint not null default 0, epoch int not null default 0,
    payload json not null, result json, created_at timestamptz not null default now(), ended_at timestamptz
) with (fillfactor = 70);
create index bare_active on bare (created_at) where state < 2;
"""


async def prepare(database_url: str, nats_url: str) -> None:
    """Make the table, the stream and its durable consumer, as the product's are."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(TABLE)
    wire = await Wire.connect(nats_url)
    stream = {
        "name": STREAM,
        "subjects": [SUBJECT],
        "retention": "workqueue",
        "storage": "file",
        "discard": "new",
        "duplicate_window": 10 * SECOND,
    }
    await wire.request(f"$JS.API.STREAM.CREATE.{STREAM}", stream)
    durable = {"durable_name": DURABLE, "ack_policy": "explicit", "ack_wait": 5 * SECOND, "max_ack_pending": 20_000}
    await wire.request(
        f"$JS.API.CONSUMER.CREATE.{STREAM}.{DURABLE}", {"stream_name": STREAM, "config": durable, "action": "create"}
    )
    wire.close()


async def connected(database_url: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    """A connection whose statements commit by themselves, durably."""
    return await psycopg.AsyncConnection.connect(
        database_url, autocommit=True, prepare_threshold=0, options="-c synchronous_commit=on -c jit=off"
    )
