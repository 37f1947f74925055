"""The metadata of a KEDA trigger: which queues, which metric, which target. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from headrace_core.errors import InvalidFields, Violation
from headrace_core.tasks.scaling import QueueWork

MAX_KEYS = 32
MAX_QUEUES_TEXT = 16_384
"""Characters of `queues`: room for more queues than anybody declares."""
TARGET = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")
"""What Kubernetes keeps of a quantity: thousandths."""
FROM_ENV = "FromEnv"
"""KEDA sends what it took from an environment under the key as it was written."""
OURS = ("queues", "metric", "target")
# KEDA reads these itself and sends them all the same.
KEDAS = frozenset(
    {
        "scalerAddress",
        "enableTLS",
        "unsafeSsl",
        "caCert",
        "tlsClientCert",
        "tlsClientKey",
        "tlsCertFile",
    }
)


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. `key` is its name in the metadata, `name` the one on the wire."""

    key: str
    name: str
    target: float
    measure: Callable[[Iterable[QueueWork]], float]


WORK = Metric("work", "headrace-work", 64.0, lambda queues: float(sum(queue.work for queue in queues)))
OLDEST_AGE = Metric(
    "oldest-age", "headrace-oldest-age", 30.0, lambda queues: max((queue.wait for queue in queues), default=0.0)
)
METRICS = {metric.key: metric for metric in (WORK, OLDEST_AGE)}


@dataclass(frozen=True, slots=True)
class Trigger:
    """What a trigger asks for. `queues` is empty for all of them."""

    queues: tuple[str, ...] = ()
    metric: Metric = WORK
    target: float = WORK.target

    def value(self, work: Mapping[str, QueueWork]) -> float:
        """The metric, from the figures of all queues."""
        return self.metric.measure(work[name] for name in self.queues or work if name in work)

    def active(self, active: Mapping[str, bool]) -> bool:
        """Whether one of its queues needs a consumer, from what is known of all."""
        return any(active.get(name, False) for name in self.queues or active)

    def unknown(self, declared: Collection[str]) -> list[Violation]:
        """A violation for each of its queues that is not declared."""
        return [
            Violation("scalerMetadata.queues", f"no queue {_shown(name)} is declared; declare it in headrace.toml")
            for name in self.queues
            if name not in declared
        ]


def parse(metadata: Mapping[str, str]) -> tuple[Trigger, list[Violation]]:
    """The trigger, and what is wrong with its metadata: then it stands for no more than the queues that it names."""
    if len(metadata) > MAX_KEYS:
        said = f"there are {len(metadata)} keys; at most {MAX_KEYS} are allowed"
        return Trigger(), [Violation("scalerMetadata", said)]
    found: list[Violation] = [*_strangers(metadata)]
    ours = {key: _value(metadata, key, found) for key in OURS}
    metric = _metric(ours["metric"], found)
    return Trigger(_queues(ours["queues"], found), metric, _target(ours["target"], metric, found)), found


def refuse(violations: list[Violation]) -> None:
    """Raise InvalidFields with all of them, if there are any."""
    if violations:
        raise InvalidFields.of(violations)


def _strangers(metadata: Mapping[str, str]) -> Iterator[Violation]:
    """A key with a slip of the pen would be a default that nobody meant, for `queues` even all of them."""
    for key in metadata:
        name = key.removesuffix(FROM_ENV)
        if name not in OURS and name not in KEDAS:
            yield Violation(f"scalerMetadata.{key[:64]}", f"no such key; those of this scaler are {', '.join(OURS)}")


def _value(metadata: Mapping[str, str], key: str, found: list[Violation]) -> str:
    """The value of a key, without blanks around it; empty if it is absent."""
    taken = key + FROM_ENV
    if key in metadata and taken in metadata:
        found.append(Violation(f"scalerMetadata.{key}", f"it is given, and {taken} as well; give one of them"))
    return metadata.get(key, metadata.get(taken, "")).strip()


def _queues(text: str, found: list[Violation]) -> tuple[str, ...]:
    if len(text) > MAX_QUEUES_TEXT:
        said = f"it has {len(text)} characters; at most {MAX_QUEUES_TEXT} are allowed"
        found.append(Violation("scalerMetadata.queues", said))
        return ()
    names = [name.strip() for name in text.split(",")] if text else []
    if "" in names:
        said = f"there is no name before or after a comma in {_shown(text)}; leave the key out for all queues"
        found.append(Violation("scalerMetadata.queues", said))
    return tuple(dict.fromkeys(name for name in names if name))


def _metric(text: str, found: list[Violation]) -> Metric:
    if text and text not in METRICS:
        said = f"{_shown(text)} is no metric; it is one of {', '.join(METRICS)}"
        found.append(Violation("scalerMetadata.metric", said))
    return METRICS.get(text, WORK)


def _target(text: str, metric: Metric, found: list[Violation]) -> float:
    if not text:
        return metric.target
    target = float(text) if TARGET.fullmatch(text) else 0.0
    if target <= 0:
        said = f"{_shown(text)} is no number above 0 such as 64 or 0.5, of at most 9 digits and 3 decimals"
        found.append(Violation("scalerMetadata.target", said))
    return target


def _shown(text: str) -> str:
    return json.dumps(text[:80])
