"""What operators do, written down in the transaction that does it: who, what, before and after. Never payloads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from headrace_core.db import queries
from headrace_core.db.pool import Database, Transaction
from headrace_core.errors import DatabaseUnavailable, DomainError
from headrace_core.telemetry import logs

_SQL = queries.load("headrace_core.tasks", "sql/audit.sql")
OK = "OK"
UNFINISHED = "UNFINISHED"
MAX_TARGET = 4000

log = logs.get(__name__)


@dataclass(slots=True)
class Action:
    """One action of an operator. `done` counts what its transactions have committed so far."""

    who: str
    peer: str
    name: str
    target: str
    namespace: str = ""
    id: UUID = field(default_factory=uuid4)
    done: int = 0
    noted: bool = False

    async def note(
        self,
        tx: Transaction,
        after: Mapping[str, Any] | None = None,
        *,
        before: Mapping[str, Any] | None = None,
        outcome: str = OK,
    ) -> None:
        """Write the action's row, or complete it. What was known of before and after stays where None is given."""
        params = {
            "id": self.id,
            "who": self.who,
            "peer": self.peer,
            "action": self.name,
            "namespace": self.namespace,
            "target": self.target[:MAX_TARGET].replace("\0", ""),
            "before": None if before is None else json.dumps(before),
            "after": None if after is None else json.dumps(after),
            "outcome": outcome,
        }
        await tx.execute(_SQL["note"], params)
        self.noted = True


@asynccontextmanager
async def recorded(db: Database, action: Action | None) -> AsyncIterator[None]:
    """Around an action: also what changed nothing, and what failed, leaves its row. None: nothing is written."""
    try:
        yield
    except Exception as error:
        if action is not None:
            await _note(db, action, error.reason if isinstance(error, DomainError) else "INTERNAL")
        raise
    if action is not None and not action.noted:
        await _note(db, action, OK)
    if action is not None:
        _say(action, OK)


async def _note(db: Database, action: Action, outcome: str) -> None:
    """The log has it also where Postgres is away."""
    if outcome != OK:
        _say(action, outcome)
    try:
        await db.run(lambda tx: action.note(tx, outcome=outcome))
    except DatabaseUnavailable as error:
        log.error("an action was not written down", action="audit.unwritten", error=error.message)


def _say(action: Action, outcome: str) -> None:
    log.info(
        "an operator acted",
        action=f"audit.{action.name}",
        who=action.who,
        peer=action.peer,
        target=action.target[:500],
        outcome=outcome,
    )
