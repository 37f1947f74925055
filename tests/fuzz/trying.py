"""How many inputs a target is tried with: a bounded, repeatable number in the suite; random ones for as long as wanted.

`FUZZ_SECONDS` is how long each target is tried, 0 for the number that its test names; `FUZZ_SEED` where a long run
begins. `python -m tests.fuzz` sets both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
BATCH = 500
PROPERTY = "inputs tried"

T = TypeVar("T")


def attempt_all(
    request: pytest.FixtureRequest,
    strategy: SearchStrategy[T],
    check: Callable[[T], None],
    *,
    inputs: int,
    shrink: bool = True,
) -> None:
    """Call `check` with inputs of `strategy`: `inputs` of them, always the same, or random ones for FUZZ_SECONDS.

    How many it were stands in the report's summary. `shrink`: look for the smallest input that fails; not where each
    look takes seconds.
    """
    tried = 0

    def count_and_check(value: T) -> None:
        nonlocal tried
        tried += 1
        check(value)

    try:
        for profile in _rounds(inputs, shrink=shrink):
            profile(given(strategy)(count_and_check))()
    finally:
        request.node.user_properties.append((PROPERTY, tried))


def _rounds(inputs: int, *, shrink: bool) -> Iterator[Callable[[Any], Any]]:
    if not SECONDS:
        yield _settings(inputs, repeatable=True, shrink=shrink)
        return
    until = time.monotonic() + SECONDS
    for number in count(SEED):
        if time.monotonic() > until:
            return
        yield _seeded(number, _settings(BATCH, repeatable=False, shrink=shrink))


def _seeded(number: int, chosen: Any) -> Callable[[Any], Any]:
    return lambda test: seed(number)(chosen(test))


def _settings(inputs: int, *, repeatable: bool, shrink: bool) -> Any:
    return settings(
        max_examples=inputs,
        derandomize=repeatable,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
