"""What consumers say about themselves: their kinds with the input schemas, that they live, how inference is.

The producer refuses by it what nobody can run; the status service shows it. Nothing here decides about a task.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from headrace_core.db import queries
from headrace_core.db.pool import Database

_SQL = queries.load("headrace_core.tasks", "sql/kinds.sql")
KIND_DAYS = 7
"""A registration ends so many days after its last consumer."""
LIVE_SECONDS = 15.0
"""A consumer that has been silent for longer is not counted as living; it says something every 5 s."""


@dataclass(frozen=True, slots=True)
class KindRow:
    """A registration: a kind with one schema (JSON text; None: any object fits), and the queue that it names."""

    kind: str
    schema_hash: str
    schema: bytes | None
    queue: str
    sharded: bool


@dataclass(frozen=True, slots=True)
class ConsumerRow:
    """A consumer process. `mode` is broker, fallback or postgres; the times are the database's, and not written."""

    holder: UUID
    worker: str
    kinds: list[str]
    queues: list[str]
    draining: bool = False
    running: int = 0
    mode: str = ""
    started_at: datetime | None = None
    seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """How the inference back end of ai.analyze was, as JSON text, and when a consumer looked."""

    health: bytes
    checked_at: datetime


async def register_kinds(db: Database, rows: Iterable[KindRow]) -> None:
    """Register kinds, or note that they are still there. Idempotent."""
    found = list(rows)
    params = {
        "kinds": [row.kind for row in found],
        "hashes": [row.schema_hash for row in found],
        "schemas": [row.schema.decode() if row.schema is not None else None for row in found],
        "queues": [row.queue for row in found],
        "sharded": [row.sharded for row in found],
    }
    await db.execute(_SQL["register"], params)


async def read_kinds(db: Database) -> list[KindRow]:
    """The registrations of the last 7 days, those of a kind together, the last seen of them last."""
    return [KindRow(**row) for row in await db.fetch(_SQL["read"], {"days": KIND_DAYS})]


async def undeclared_queues(db: Database, names: Sequence[str]) -> list[str]:
    """Those of `names` that nobody has declared."""
    return [row["name"] for row in await db.fetch(_SQL["undeclared"], {"names": list(names)})]


async def upsert_consumer(db: Database, consumer: ConsumerRow) -> None:
    """Give a sign of life."""
    params = {
        "holder": consumer.holder,
        "worker": consumer.worker,
        "kinds": consumer.kinds,
        "queues": consumer.queues,
        "draining": consumer.draining,
        "running": consumer.running,
        "mode": consumer.mode,
    }
    await db.execute(_SQL["upsert_consumer"], params)


async def remove_consumer(db: Database, holder: UUID) -> None:
    """Note that a consumer has ended. Idempotent."""
    await db.execute(_SQL["remove_consumer"], {"holder": holder})


async def live_consumers(db: Database, within: float = LIVE_SECONDS) -> list[ConsumerRow]:
    """The consumers that have given a sign of life in the last `within` seconds, by name."""
    return [ConsumerRow(**row) for row in await db.fetch(_SQL["live_consumers"], {"within": within})]


async def write_inference(db: Database, health: Mapping[str, Any]) -> None:
    """Note how the inference back end is: backend, model, models, latencyMs, lastError (None: well)."""
    params = {"health": json.dumps(dict(health))}
    await db.execute(_SQL["write_inference"], params)


async def read_inference(db: Database) -> Inference | None:
    """What was last noted of the inference back end; None: nothing yet."""
    rows = await db.fetch(_SQL["read_inference"])
    return Inference(**rows[0]) if rows else None
