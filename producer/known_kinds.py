"""The registered kinds as this process last read them: at most a second old; read at once for an unknown one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jsonschema_rs

from headrace_core.db.pool import Database
from headrace_core.errors import PayloadMismatch, UnknownKind, Violation
from headrace_core.tasks.kinds import KindRow, read_kinds
from headrace_core.telemetry import logs

REFRESH_SECONDS = 1.0
MAX_VIOLATIONS = 20

_log = logs.get("headrace.producer.kinds")


class _Validator(Protocol):
    def is_valid(self, instance: Any) -> bool: ...

    def iter_errors(self, instance: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class KnownKind:
    """A kind with the schemas of its live registrations. No validators: any object fits."""

    name: str
    queue: str
    sharded: bool
    validators: tuple[_Validator, ...]

    def check(self, value: Any) -> None:
        """Raises PayloadMismatch, saying where, if `value` fits none of the schemas."""
        if not self.validators or any(validator.is_valid(value) for validator in self.validators):
            return
        violations = _violations(self.validators[0], value)
        listed = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise PayloadMismatch(
            f"the payload does not fit kind {self.name!r}: {listed}",
            violations=violations,
            metadata={"kind": self.name},
        )


class KnownKinds:
    """The cache. `keep_fresh` is a background task's work; `find` answers from memory unless the kind is new."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._kinds: dict[str, KnownKind] = {}
        self._compiled: dict[tuple[str, str], _Validator | None] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    @property
    def sharded(self) -> list[str]:
        """The kinds whose own unit is a plan."""
        return [kind.name for kind in self._kinds.values() if kind.sharded]

    async def find(self, name: str) -> KnownKind:
        """The kind of that name.

        Raises:
            UnknownKind: nobody has registered it, as read after this call began.
            DatabaseUnavailable: it is not known here, and Postgres does not answer.
        """
        kind = self._kinds.get(name)
        if kind is None:
            await self._refresh(since=asyncio.get_running_loop().time())
            kind = self._kinds.get(name)
        if kind is None:
            raise UnknownKind(
                f"no consumer has registered kind {name!r}; start one that handles it", metadata={"kind": name}
            )
        return kind

    async def keep_fresh(self) -> None:
        """Read the kinds each second, for ever. Raises DatabaseUnavailable; what is known stays known."""
        while True:
            await self._refresh(since=asyncio.get_running_loop().time() - REFRESH_SECONDS)
            await asyncio.sleep(REFRESH_SECONDS)

    async def _refresh(self, *, since: float) -> None:
        """Read the kinds unless a read has begun at or after `since`. However many ask, one read is under way."""
        async with self._reading:
            if self._read_at >= since:
                return
            begun = asyncio.get_running_loop().time()
            rows = await read_kinds(self._db)
            self._read_at = begun
        grouped: dict[str, list[KindRow]] = {}
        for row in rows:
            grouped.setdefault(row.kind, []).append(row)
        self._compiled = {(row.kind, row.schema_hash): self._validator(row) for row in rows}
        self._kinds = {name: self._known(name, found) for name, found in grouped.items()}

    def _known(self, name: str, rows: Sequence[KindRow]) -> KnownKind:
        """Of several registrations (a roll-out) the last one names the queue; one without a schema lets all fit."""
        validators = [self._compiled[row.kind, row.schema_hash] for row in rows]
        fitting = () if None in validators else tuple(item for item in validators if item is not None)
        return KnownKind(name, rows[-1].queue, rows[-1].sharded, fitting)

    def _validator(self, row: KindRow) -> _Validator | None:
        key = (row.kind, row.schema_hash)
        if key in self._compiled:
            return self._compiled[key]
        if row.schema is None:
            return None
        try:
            return jsonschema_rs.validator_for(json.loads(row.schema))
        except ValueError as error:
            _log.error("a registered schema is none", action="schema_invalid", kind=row.kind, exc_info=error)
            return None


def _violations(validator: _Validator, value: Any) -> list[Violation]:
    found = []
    for error in validator.iter_errors(value):
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path)
        found.append(Violation(f"payload{path}"[:200], str(error.message)[:500]))
        if len(found) == MAX_VIOLATIONS:
            break
    return found
