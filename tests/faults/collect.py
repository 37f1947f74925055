"""A run's files, tables and dead letter stream as one Run. Called when everything has settled."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import dict_row

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import MESSAGE_NOT_FOUND, RequestRefused, StreamMissing
from headrace_core.bus.wire import parse_headers
from tests.faults.model import (
    MERGE,
    TASK,
    Attempt,
    DeadLetter,
    Event,
    LedgerNote,
    Note,
    Run,
    StreamEntry,
    Unit,
)

Row = dict[str, Any]
# Promise G5: while the broker is up, table and stream agree within 30 s.
AGREEMENT_SECONDS = 30.0
ROUND_SECONDS = 0.5
ANSWER_SECONDS = 30.0
COMMON = frozenset({"at", "client", "what"})
LEDGER = frozenset({"at", "what", "task", "epoch", "attempt", "worker", "pid"})
STATE_PREFIX = "TASK_STATE_"

_UNITS = """
select task_id::text as task, unit, kind, state, generation, queue, namespace, idempotency_key as key, reason, epoch,
       worker, holder is not null as held, attempt, failures, crashes, interruptions, dispatch, sequence, result,
       error, total_shards, needed_shards, done_shards, extract(epoch from planned_at)::float8 as planned_at,
       extract(epoch from ended_at)::float8 as ended_at
from headrace_core.units order by task_id, unit
"""
_EVENTS = """
select task_id::text as task, sequence, generation, unit, type, state, reason, terminal, attempt, plan,
       extract(epoch from at)::float8 as at
from headrace_core.events order by task_id, sequence
"""
_ATTEMPTS = """
select task_id::text as task, unit, generation, attempt, epoch, worker, outcome,
       coalesce(error ->> 'reason', '') as reason,
       extract(epoch from started_at)::float8 as started_at, extract(epoch from ended_at)::float8 as ended_at
from headrace_core.attempts order by task_id, unit, epoch
"""
_DEAD_LETTERS = """
select id, task_id::text as task, generation, queue, reason, resolution, published_at is not null as published,
       removed_at is not null as removed
from headrace_core.dead_letters order by id
"""


async def collect(
    folder: Path, database_url: str, nats_url: str | None, *, agreement: float = AGREEMENT_SECONDS
) -> Run:
    """Read everything. `nats_url` None: there is no stream to read.

    Waits up to `agreement` seconds for the stream to agree with the table; what has not agreed by then is in the Run as
    it is, for the checker to find.

    Raises:
        psycopg.Error, BusError: Postgres or the broker is away: the run has not healed.
    """
    stream = None
    if nats_url is not None:
        stream = await _agreed_stream(database_url, nats_url, agreement)
    units, events, attempts, letters = await _tables(database_url, _UNITS, _EVENTS, _ATTEMPTS, _DEAD_LETTERS)
    return Run(
        history=tuple(sorted(_notes((folder / "history").glob("*.jsonl")), key=lambda note: note.at)),
        faults=tuple(_notes([folder / "faults.jsonl"])),
        ledger=tuple(sorted(_ledger(folder / "ledger"), key=lambda note: note.at)),
        units=tuple(Unit(**row) for row in units),
        events=tuple(Event(**row) for row in events),
        attempts=tuple(Attempt(**row) for row in attempts),
        dead_letters=tuple(DeadLetter(**row) for row in letters),
        stream=stream,
    )


async def _tables(database_url: str, *statements: str) -> list[list[Row]]:
    """The answers of one snapshot."""
    async with asyncio.timeout(ANSWER_SECONDS):
        connection: AsyncConnection[Row] = await psycopg.AsyncConnection.connect(database_url, row_factory=dict_row)
        async with connection:
            await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
            return [await (await connection.execute(statement.encode())).fetchall() for statement in statements]


# -- the dead letter stream ---------------------------------------------------------------------------------------


async def _agreed_stream(database_url: str, nats_url: str, within: float) -> tuple[StreamEntry, ...]:
    until = time.monotonic() + within
    bus = Bus(nats_url, name="faults collect")
    try:
        await bus.connect(ANSWER_SECONDS)
        while True:
            entries = await read_stream(bus)
            (rows,) = await _tables(database_url, _DEAD_LETTERS)
            due = sorted(row["id"] for row in rows if not row["resolution"])
            if sorted(entry.id for entry in entries) == due or time.monotonic() > until:
                return entries
            await asyncio.sleep(ROUND_SECONDS)
    finally:
        await bus.close()


async def read_stream(bus: Bus) -> tuple[StreamEntry, ...]:
    """Every message of the DLQ stream, by its sequence number, one after the other."""
    names = StreamNames()
    try:
        state = (await bus.request(f"$JS.API.STREAM.INFO.{names.dead_letters}"))["state"]
    except StreamMissing:
        return ()
    found = [await _entry(bus, names, number) for number in range(max(state["first_seq"], 1), state["last_seq"] + 1)]
    return tuple(entry for entry in found if entry is not None)


async def _entry(bus: Bus, names: StreamNames, number: int) -> StreamEntry | None:
    """One message; None for a number whose message has been removed."""
    try:
        answer = await bus.request(f"$JS.API.STREAM.MSG.GET.{names.dead_letters}", {"seq": number})
    except RequestRefused as error:
        if error.err_code == MESSAGE_NOT_FOUND:
            return None
        raise
    message = answer["message"]
    headers = parse_headers(base64.b64decode(message.get("hdrs", "")))
    return StreamEntry(message["subject"].rsplit(".", 1)[1], number, headers.get("Headrace-Reason", ""))


# -- files --------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Row]:
    """The records of a file; the last line of a process that was killed may be cut."""
    if not path.exists():
        return
    with closing(path.open(encoding="utf-8", errors="replace")) as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _notes(paths: Iterable[Path]) -> Iterator[Note]:
    for path in sorted(paths):
        for record in _lines(path):
            fields = {name: _plain(value) for name, value in record.items() if name not in COMMON}
            yield Note(record["at"], record["client"], record["what"], fields)


def _plain(value: Any) -> Any:
    """A state as the rows name it, also where the client wrote the enum's name."""
    return value.removeprefix(STATE_PREFIX) if isinstance(value, str) else value


def _ledger(folder: Path) -> Iterator[LedgerNote]:
    for path in sorted(folder.glob("*.jsonl")):
        for record in _lines(path):
            known = {name: record[name] for name in LEDGER}
            rest = {name: value for name, value in record.items() if name not in LEDGER}
            yield LedgerNote(**known, unit=_unit_of(record), fields=rest)


def _unit_of(record: Row) -> int:
    if record.get("shard") is not None:
        return int(record["shard"])
    return MERGE if record.get("phase") == "merge" else TASK
