"""The variants: each replaces a statement or a function of a service before it starts.

A variant whose text is not found any more fails the start of its services: then the product has changed, and the
variant must be made anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

LEASE = "and case when u.state = 'PROCESSING' then u.epoch end = i.epoch and u.holder = i.holder"


def _replace(module: str, statement: str, *changes: tuple[str, str]) -> None:
    """Change the text of a statement that `module` has loaded."""
    names = vars(import_module(module))
    sql: str = names["_SQL"][statement]
    for old, new in changes:
        if old not in sql:
            raise LookupError(f"{statement} of {module} has no {old!r}")
        sql = sql.replace(old, new)
    names["_SQL"] = MappingProxyType({**names["_SQL"], statement: sql})


def unfenced_write() -> None:
    """Whoever finishes a task writes its result, whether or not it still holds the lease."""
    _replace("headrace_core.tasks.settle", "complete_tasks", (LEASE, ""))


def ack_before_settling() -> None:
    """Acknowledges first, and takes the work for done then: what Postgres does not take at once is dropped."""
    unit, settling = import_module("consumer.unit"), import_module("consumer.settling")
    model = import_module("headrace_core.tasks.model")
    record = unit.Units._record

    async def acknowledge_then_record(self: Any, attempt: Any, outcome: Any) -> Any:
        if attempt.message is not None:
            await attempt.message.ack()
        return await record(self, attempt, outcome)

    async def persist(self: Any, settlements: Sequence[Any]) -> Any:
        try:
            async with asyncio.timeout(0.5):
                return await settling.settle(self._database, settlements, sharded=self._sharded)
        except (TimeoutError, settling.DatabaseUnavailable):
            return model.Settlements([model.Settled(applied=False) for _ in settlements], [], [])

    unit.Units._record = acknowledge_then_record
    settling.Settler._persist = persist


def lost_outbox_row() -> None:
    """A retry never leaves the outbox: the time of its row is written in years."""
    seconds, years = "i.due_in * interval '1 second'", "i.due_in * interval '1 year'"
    _replace("headrace_core.tasks.settle", "reschedule", (seconds, years))


def doubled_event() -> None:
    """The end of a task is written twice."""
    event = "select task_id, sequence, generation, unit, attempt, 'state', 'COMPLETED', true from done"
    earlier = event.replace("sequence", "sequence - 1")
    _replace(
        "headrace_core.tasks.settle",
        "complete_tasks",
        ("sequence = u.sequence + 1", "sequence = u.sequence + 2"),
        (event, f"{earlier} union all {event}"),
    )


def hand_back_same_message_id() -> None:
    """A unit that is handed back keeps its dispatch number, so its new message has the id of the old one."""
    _replace("headrace_core.tasks.settle", "reschedule", ("dispatch = u.dispatch + 1", "dispatch = u.dispatch"))


def lost_fan_in() -> None:
    """Finished shards are counted instead of added up, without a lock: two that end at once do not see each other.

    All consumers settle at full beats of the clock, so that they do it at once.
    """
    settling = vars(import_module("consumer.settling"))
    settle, beat = settling["settle"], 2.0

    async def at_once(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(beat - time.time() % beat)
        return await settle(*arguments, **options)

    settling["settle"] = at_once
    count = (
        "(select count(*)::int from headrace_core.units s"
        " where s.task_id = t.task_id and s.unit >= 0 and s.state = 'COMPLETED') + c.n"
    )
    _replace("headrace_core.tasks.settle", "lock_tasks", ("for update", ""))
    _replace(
        "headrace_core.tasks.settle",
        "complete_shards",
        ("t.done_shards + c.n", count),
        (
            "t.done_shards >= t.needed_shards and t.done_shards - c.n < t.needed_shards",
            "t.done_shards = t.needed_shards",
        ),
        ("from done group by task_id", "from done, pg_sleep(0.8) group by task_id"),
    )


TAKE = """
update headrace_core.units set sequence = sequence + %(count)s where task_id = %(task)s and unit = -1 returning sequence
"""
WRITE = """
insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, fraction, text)
values (%(task)s, %(sequence)s, 1, %(unit)s, 1, 'progress', %(fraction)s, %(text)s)
"""


def sequences_out_of_commit_order() -> None:
    """A report takes its number in one transaction and writes its event in a later one."""
    module = import_module("headrace_core.tasks.report")

    async def report(db: Any, reports: Sequence[Any], *, sharded: Sequence[str] = ()) -> list[Any]:
        del sharded
        taken: list[Mapping[str, Any]] = []
        for item in reports:
            task = item.lease.unit_id
            (row,) = await db.fetch(TAKE, {"task": task.task_id, "count": 1})
            taken.append({"task": task.task_id, "unit": task.unit, "fraction": item.fraction, "text": item.text} | row)
        await asyncio.sleep(3.0)
        for event in taken:
            await db.run(lambda tx, event=event: tx.execute(WRITE, event))
        return [module.Wake(event["task"], event["sequence"]) for event in taken]

    vars(module)["report"] = report


def watch_trusts_wakes() -> None:
    """Watches are read when somebody wakes them, and at no other time."""
    hub = import_module("status.hub").Hub
    assert callable(hub.sweep)
    hub.sweep = lambda _hub: None


def epochs_restart_at_redrive() -> None:
    """A redriven task counts its epochs from the beginning."""
    _replace(
        "headrace_core.tasks.dead_letters",
        "redrive",
        ("epoch = case when c.planned then t.epoch else c.epoch end", "epoch = 0"),
    )


def crash_charged_after_outage() -> None:
    """A lease that ran out counts as a crash, also where its holder lives and could not reach Postgres."""
    takeover, model = import_module("headrace_core.tasks.takeover"), import_module("headrace_core.tasks.model")
    error = import_module("headrace_core.tasks.outcome").error_json("CRASHED", "Crash", "the lease ran out")

    def charged(lease: Any, interruptions: int, outcome: Any) -> Any:
        del interruptions, outcome
        return model.Reschedule(lease, 0.0, "crash", "CRASHED", error=error)

    vars(takeover)["interrupt"] = charged


VARIANTS: Mapping[str, Callable[[], None]] = {
    variant.__name__: variant
    for variant in (
        unfenced_write,
        ack_before_settling,
        lost_outbox_row,
        doubled_event,
        hand_back_same_message_id,
        lost_fan_in,
        sequences_out_of_commit_order,
        watch_trusts_wakes,
        epochs_restart_at_redrive,
        crash_charged_after_outage,
    )
}
"""By name, as `--broken NAME` takes it."""
