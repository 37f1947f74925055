"""Redriving and discarding: which entries, in which batches, at which rate; then everybody who should know is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from headrace import json_text
from headrace_core.access.identity import ANYONE, Identity, Roles
from headrace_core.access.table import OPERATORS, READERS
from headrace_core.db.pool import Database
from headrace_core.errors import DeadLetterNotFound, DeadLetterResolved
from headrace_core.tasks import dead_letters
from headrace_core.tasks.audit import Action
from headrace_core.tasks.dead_letters import Chosen, DeadLetter, Filter
from headrace_core.tasks.model import TaskRecord
from headrace_core.telemetry import logs, tracing
from producer.announcing import Announcer
from producer.arguments import is_uuid
from producer.known_kinds import KnownKinds
from producer.publishing import TaskPublisher
from producer.tracing import redriving

MAX_MATCHED = 10_000
BATCH = 500

_log = logs.get("headrace.producer.redrive")


@dataclass(slots=True)
class Done:
    """What a redrive did. With a rate, `tasks` holds only the first: the others wait for their turns."""

    tasks: list[TaskRecord] = field(default_factory=list)
    skipped: int = 0


class Redrive:
    """The two ways out of a dead letter."""

    def __init__(self, db: Database, kinds: KnownKinds, publisher: TaskPublisher, announcer: Announcer) -> None:
        self._db = db
        self._kinds = kinds
        self._publisher = publisher
        self._announcer = announcer

    async def find(self, ids: Sequence[str], identity: Identity = ANYONE, roles: Roles = READERS) -> list[DeadLetter]:
        """Entries by their ids or their tasks' (then the latest), each once, for somebody with these roles.

        Raises DeadLetterNotFound, also for what a stranger has; PermissionDenied for what the caller may only look at.
        """
        tasks = {text: UUID(text) for text in ids if is_uuid(text)}
        letters = [text for text in ids if text not in tasks]
        found = await dead_letters.find_letters(self._db, letters, list(tasks.values()))
        keys = [str(tasks[text]) if text in tasks else text for text in ids]
        for key in keys:
            absent = DeadLetterNotFound(f"no dead letter has the id {key!r}", metadata={"id": key})
            if key not in found:
                raise absent
            identity.require(roles, found[key].namespace, absent)
        return list({found[key].id: found[key] for key in keys}.values())

    async def open_of(self, ids: Sequence[str], identity: Identity = ANYONE) -> list[Chosen]:
        """The same, as what is to be redriven or discarded. Raises as `find`, and DeadLetterResolved."""
        letters = await self.find(ids, identity, OPERATORS)
        for letter in letters:
            if letter.resolved_at is not None:
                raise DeadLetterResolved(
                    f"dead letter {letter.id} was {letter.resolution.lower()} at {letter.resolved_at.isoformat()}",
                    metadata={"id": letter.id, "resolution": letter.resolution},
                )
        return [Chosen(letter.id, letter.task_id, letter.generation) for letter in letters]

    async def matching(self, wanted: Filter) -> list[Chosen]:
        """Up to MAX_MATCHED open entries that match, oldest first."""
        return await dead_letters.match_letters(self._db, wanted, MAX_MATCHED)

    async def redrive(
        self,
        chosen: Sequence[Chosen],
        *,
        rate: float,
        deadline: datetime | None,
        payload: bytes | None,
        dry_run: bool,
        strict: bool,
        action: Action | None = None,
    ) -> Done:
        """Redrive `chosen`: all at once, or `rate` a second with the first at once.

        Raises, if `strict`, what dead_letters.redrive raises; PayloadMismatch for a new payload that does not fit.
        """
        possible = await dead_letters.redrivable(self._db, chosen, deadline=deadline, strict=strict)
        if payload is not None:
            await self._check_payload(possible[0], payload)
        done = Done(skipped=len(chosen) - len(possible))
        if dry_run:
            return done
        now = possible[:1] if rate else possible
        for batch in [now] if strict else _batches(now):
            redriven = await self._redrive_batch(batch, deadline, payload, strict=strict, action=action)
            done.tasks += redriven
            done.skipped += len(batch) - len(redriven)
        if rate and possible[1:]:
            await dead_letters.schedule(self._db, possible[1:], rate, deadline, action)
        return done

    async def redrive_due(self) -> None:
        """Redrive the entries whose turn under a rate has come."""
        turns = await dead_letters.take_turns(self._db)
        for deadline in {turn.deadline for turn in turns}:
            batch = [turn.letter for turn in turns if turn.deadline == deadline]
            redriven = {task.id for task in await self._redrive_batch(batch, deadline, None, strict=False)}
            refused = [letter.id for letter in batch if letter.task_id not in redriven]
            if refused:
                _log.warning("some turns came too late", action="redrive_refused", count=len(refused), first=refused[0])
                await dead_letters.give_turns_up(self._db, refused)

    async def discard(self, chosen: Sequence[Chosen], action: Action | None = None) -> int:
        """Close entries for good; how many were still open."""
        count = 0
        for batch in _batches(chosen):
            discarded = await dead_letters.discard(self._db, batch, action)
            self._announcer.wake(discarded.wakes)
            count += discarded.count
            if action is not None:
                action.done = count
        return count

    async def _redrive_batch(
        self,
        batch: Sequence[Chosen],
        deadline: datetime | None,
        payload: bytes | None,
        *,
        strict: bool,
        action: Action | None = None,
    ) -> list[TaskRecord]:
        if not batch:
            return []
        if tracing.spans is None:
            redriven = await dead_letters.redrive(
                self._db, batch, deadline=deadline, payload=payload, strict=strict, action=action
            )
        else:
            found = await dead_letters.trace_contexts(self._db, [item.task_id for item in batch if item.task_id])
            with redriving(tracing.spans, found) as traces:
                redriven = await dead_letters.redrive(
                    self._db, batch, deadline=deadline, payload=payload, strict=strict, traces=traces, action=action
                )
        if action is not None:
            action.done += len(redriven.tasks)
        self._publisher.offer(redriven.publications)
        self._announcer.wake(redriven.wakes)
        return redriven.tasks

    async def _check_payload(self, letter: Chosen, payload: bytes) -> None:
        """A new payload must fit the kind's schema, as at a submit."""
        value, _ = json_text.examine(payload, require_object=True, what="the payload")
        (found,) = (await dead_letters.find_letters(self._db, [letter.id], [])).values()
        kind = await self._kinds.find(found.kind)
        kind.check(value)


def _batches(chosen: Sequence[Chosen]) -> Iterator[Sequence[Chosen]]:
    for start in range(0, len(chosen), BATCH):
        yield chosen[start : start + BATCH]
