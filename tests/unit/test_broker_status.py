"""Whether a cluster still has its majority, by what its leaders say of their replicas."""

from typing import Any

import pytest

from headrace_core.bus.broker_status import without_majority
from headrace_core.bus.errors import NoQuorum, from_answer

SECOND = 1_000_000_000


def info(*active: float, offline: int = 0) -> dict[str, Any]:
    """A consumer's account: seconds since its leader heard of each replica, and how many more are known to be off."""
    replicas: list[dict[str, Any]] = [{"name": f"n{n}", "active": int(s * SECOND)} for n, s in enumerate(active)]
    replicas += [{"name": "off", "offline": True, "active": 0}] * offline
    return {"cluster": {"leader": "n9", "replicas": replicas}}


@pytest.mark.parametrize(
    "found",
    [{}, {"cluster": {"leader": "n1"}}, info(0.3, 0.9), info(0.5, 60.0), info(0.5, offline=1), info(1, 1, 60, 60)],
)
def test_a_majority_is_more_than_half_with_the_leader(found: dict[str, Any]) -> None:
    assert without_majority({"default-low": found}) == ""


@pytest.mark.parametrize("found", [info(3.0, 60.0), info(60.0, offline=1), info(offline=2), info(1, 9, 9, 9)])
def test_a_leader_that_hears_of_nobody_is_named(found: dict[str, Any]) -> None:
    said = without_majority({"default-low": found, "default-high": info(0.1, 0.2)})
    assert "default-low" in said
    assert "default-high" not in said
    assert "bring its servers back" in said


def test_only_the_durables_that_are_asked_for_count() -> None:
    assert without_majority({"other-low": info(60, 60)}, ["default-low"]) == ""


def test_a_cluster_without_its_majority_is_no_server_without_jetstream() -> None:
    error = from_answer("$JS.API.INFO", {"code": 503, "err_code": 10008, "description": "temporarily unavailable"})
    assert type(error) is NoQuorum
    assert "bring its servers back" in error.message
