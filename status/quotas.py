"""Quotas of namespaces on watching: how many streams of a namespace one process serves at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from headrace_core.errors import QuotaExceeded
from headrace_core.settings.queues import NamespaceSettings

RETRY_AFTER = 5.0


class WatchQuotas:
    """Counts the open streams of the namespaces that have a limit. Belongs to the event loop."""

    def __init__(self, declared: Mapping[str, NamespaceSettings]) -> None:
        self.limits = {name: found.max_watches for name, found in declared.items() if found.max_watches}
        self.open: Counter[str] = Counter()

    @contextmanager
    def place(self) -> Iterator[Place]:
        """For the life of a stream."""
        place = Place(self)
        try:
            yield place
        finally:
            self.open.subtract(place.taken)


class Place:
    """One stream, and the namespaces that it counts in."""

    __slots__ = ("_quotas", "taken")

    def __init__(self, quotas: WatchQuotas) -> None:
        self._quotas = quotas
        self.taken: set[str] = set()

    def take(self, namespaces: Iterable[str]) -> None:
        """Count the stream in these namespaces, once in each. Raises QuotaExceeded."""
        for namespace in namespaces:
            limit = self._quotas.limits.get(namespace)
            if limit is None or namespace in self.taken:
                continue
            if self._quotas.open[namespace] >= limit:
                raise QuotaExceeded(
                    f"namespace {namespace!r} has {limit} watches open at this server, its max_watches;"
                    " end one, or watch many tasks on one stream (WatchTasks)",
                    retry_after=RETRY_AFTER,
                    metadata={"namespace": namespace, "quota": "max_watches", "limit": str(limit)},
                )
            self._quotas.open[namespace] += 1
            self.taken.add(namespace)
