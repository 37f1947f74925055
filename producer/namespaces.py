"""Namespaces and their quotas: which exist, how fast each may submit to this process, how much of each may wait.

The backlog is judged by figures that are at most a second old, plus what this process has accepted since (design,
rule 15). Counting reads all waiting tasks, so it is done only where a namespace has max_backlog.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from headrace_core.access.table import DEFAULT_NAMESPACE
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable, QuotaExceeded, UnknownNamespace
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.queues import NamespaceSettings
from headrace_core.tasks.model import Submitted
from headrace_core.tasks.queues import count_waiting
from headrace_core.telemetry import logs

REFRESH_SECONDS = 0.75
RETRY_AFTER = 1.0
LEAST_RETRY_AFTER = 0.05

_log = logs.get("headrace.producer.namespaces")


class Bucket:
    """Tokens that come at a rate; at most a second's worth is kept, and always room for one."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._most = max(rate, 1.0)
        self._level = self._most
        self._at = now

    def take(self, now: float) -> float:
        """Take one; 0.0, or, without having taken any, in how many seconds there will be one."""
        self._level = min(self._most, self._level + max(now - self._at, 0.0) * self.rate)
        self._at = now
        if self._level < 1.0:
            return (1.0 - self._level) / self.rate
        self._level -= 1.0
        return 0.0

    def give_back(self) -> None:
        """What was taken has not been used."""
        self._level = min(self._most, self._level + 1.0)


class Namespaces:
    """What is declared. `keep_fresh` is a background task's work. `implicit`: others exist too."""

    def __init__(self, db: Database, declared: Mapping[str, NamespaceSettings], *, implicit: bool) -> None:
        self._db = db
        self._declared = declared
        self._implicit = implicit or not declared
        now = time.monotonic()
        self._buckets = {name: Bucket(one.rate_limit, now) for name, one in declared.items() if one.rate_limit}
        self._bounds = {name: one.max_backlog for name, one in declared.items() if one.max_backlog}
        self._waiting: dict[str, int] = {}
        self._accepted: Counter[str] = Counter()

    @classmethod
    def of(cls, db: Database, settings: ServiceSettings) -> Namespaces:
        """As headrace.toml declares them."""
        return cls(db, settings.topology.namespaces, implicit=settings.implicit_namespaces)

    def admit(self, namespace: str) -> None:
        """Let one more task in, and count it against the rate. Nothing is taken if it is refused.

        Raises:
            UnknownNamespace: namespaces are declared, and this is none of them.
            QuotaExceeded: the message and the metadata say which quota.
        """
        if not self._implicit and namespace != DEFAULT_NAMESPACE and namespace not in self._declared:
            raise UnknownNamespace(
                f"no namespace {namespace!r} is declared; declare it in headrace.toml",
                metadata={"namespace": namespace},
            )
        bound = self._bounds.get(namespace)
        if bound is not None and self._waiting.get(namespace, 0) + self._accepted[namespace] >= bound:
            raise _exceeded(namespace, "max_backlog", bound, f"holds {bound} waiting tasks", RETRY_AFTER)
        bucket = self._buckets.get(namespace)
        if bucket is not None and (wait := bucket.take(time.monotonic())):
            said = f"submits more than {bucket.rate:g} tasks a second to this producer"
            raise _exceeded(namespace, "rate_limit", bucket.rate, said, max(wait, LEAST_RETRY_AFTER))

    def give_back(self, namespace: str) -> None:
        """What `admit` let in has not become a task."""
        if bucket := self._buckets.get(namespace):
            bucket.give_back()

    def note(self, answers: Sequence[Submitted]) -> None:
        """What was committed: new tasks wait now, and a repetition costs nothing (promise G2)."""
        if not self._declared:
            return
        for answer in answers:
            if not answer.created:
                self.give_back(answer.task.namespace)
            elif answer.task.namespace in self._bounds:
                self._accepted[answer.task.namespace] += 1

    async def keep_fresh(self) -> None:
        """Count again and again, for ever. While Postgres is away, what is known stays known."""
        while self._bounds:
            try:
                await self.refresh()
            except DatabaseUnavailable as error:
                _log.warning("waiting tasks were not counted", action="namespaces_uncounted", error=error.message)
            await asyncio.sleep(REFRESH_SECONDS)

    async def refresh(self) -> None:
        """Count now. Raises DatabaseUnavailable."""
        before = self._accepted.copy()
        self._waiting = await count_waiting(self._db, self._bounds)
        # What was accepted while the query ran may not have been counted: it stays on top.
        self._accepted.subtract(before)
        self._accepted = +self._accepted


def _exceeded(namespace: str, quota: str, limit: float, said: str, retry_after: float) -> QuotaExceeded:
    return QuotaExceeded(
        f"namespace {namespace!r} {said}, its {quota}; try again later",
        retry_after=retry_after,
        metadata={"namespace": namespace, "quota": quota, "limit": f"{limit:g}"},
    )
