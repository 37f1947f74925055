"""Runs on a whole stack take minutes: they run only when the marker `faults` is asked for."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "faults" in config.getoption("markexpr"):
        return
    chosen = [item for item in items if item.get_closest_marker("faults") is None]
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("faults") is not None])
    items[:] = chosen
