"""The protocol of a measure: what it samples in one round, and which figures are made of the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

Samples: TypeAlias = dict[str, float]


class WrongResult(Exception):
    """The product gave wrong counts or results: no figure is worth anything then."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How a run is done. `folder` is empty and all of it may be used; `quick` is a check of the whole in about two
    minutes, with figures that say little."""

    folder: Path
    quick: bool

    def size(self, full: int, quick: int) -> int:
        """How many: in a full run, in a quick one."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached; of the ratio where the figure has one."""

    bound: float
    least: bool

    def reached(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value >= self.bound if self.least else value <= self.bound


def at_least(bound: float) -> Target:
    """More is better."""
    return Target(bound, least=True)


def at_most(bound: float) -> Target:
    """Less is better."""
    return Target(bound, least=False)


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table: a sample, its unit, the sample of the same round that it is divided by, and the target."""

    sample: str
    unit: str
    per: str | None = None
    target: Target | None = None


class Measure(Protocol):
    """A module of bench.measures."""

    @property
    def WHAT(self) -> str:  # noqa: N802 - a constant of the module
        """One line for `--list`."""

    @property
    def FIGURES(self) -> Sequence[Figure]:  # noqa: N802
        """The rows of the table."""

    @property
    def ON_DEMAND(self) -> bool:  # noqa: N802
        """It takes minutes: left out of a quick run unless named, and done once in a full one."""

    async def once(self, scope: Scope) -> Samples:
        """Sample once: references and product next to each other. Raises WrongResult."""


def required(condition: bool, what: str) -> None:
    """Raise WrongResult saying `what` unless `condition` holds."""
    if not condition:
        raise WrongResult(what)


Rounds: TypeAlias = Sequence[Mapping[str, float]]
