"""The same seed is the same run: faults and workload are decided before anything starts."""

from __future__ import annotations

import itertools

import pytest

from tests.faults.scenarios import SCENARIOS, mixture
from tests.faults.schedule import FIRST_STRIKE, LAST_HEAL, Strike, cluster_cards, schedule, server_cards, service_cards
from tests.faults.strikes import FAULTS
from tests.faults.workload.intentions import MAKERS, Mix, intentions

SERVICES = ("producer", "status", "consumer-1", "consumer-2")
SEEDS = range(20)


def first(seed: int, count: int, mix: Mix | None = None) -> list[object]:
    return list(itertools.islice(intentions(seed, mix or Mix()), count))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_one_schedule(seed: int) -> None:
    assert schedule(seed, 180.0) == schedule(seed, 180.0)
    assert schedule(seed, 180.0) != schedule(seed + 1, 180.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_longer_run_begins_like_a_shorter_one(seed: int) -> None:
    short, long = schedule(seed, 60.0), schedule(seed, 600.0)
    assert set(short) <= set(long)


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_leave_the_beginning_and_the_end_alone(seed: int) -> None:
    strikes = schedule(seed, 180.0)
    assert strikes == tuple(sorted(strikes, key=lambda strike: strike.at))
    assert all(strike.at >= FIRST_STRIKE and strike.end <= 180.0 - LAST_HEAL for strike in strikes)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_most_two_faults_meet(seed: int) -> None:
    strikes = schedule(seed, 600.0)
    assert max(_striking(strikes, strike.at) for strike in strikes) <= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_five_minutes_meet_every_fault(seed: int) -> None:
    struck = {strike.fault for strike in schedule(seed, 300.0)}
    assert struck == {card.fault for card in (*server_cards(SERVICES), *service_cards(SERVICES))}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_is_struck_at_its_nodes(seed: int) -> None:
    strikes = schedule(seed, 300.0, nodes=3)
    assert {strike.fault for strike in strikes} >= {"kill_leader", "kill", "freeze", "delete_streams"}
    assert not {strike.target for strike in strikes if strike.target.endswith(">nats")}
    assert {strike.target for strike in strikes if strike.fault == "wipe"} == set()


def test_every_fault_of_a_schedule_or_scenario_can_be_carried_out() -> None:
    cards = (*server_cards(SERVICES), *cluster_cards(SERVICES), *service_cards(SERVICES))
    fixed = {strike.fault for scenario in SCENARIOS.values() for strike in scenario.strikes}
    assert {card.fault for card in cards} | fixed <= FAULTS


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_heals_before_its_load_ends(name: str) -> None:
    scenario = SCENARIOS[name]
    assert all(strike.at > 0.0 and strike.end <= scenario.seconds for strike in scenario.strikes)


def test_the_mixture_lasts_as_long_as_asked() -> None:
    assert mixture(1, 3.0).seconds == 180.0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_one_workload(seed: int) -> None:
    assert first(seed, 200) == first(seed, 200)
    assert first(seed, 200) != first(seed + 1, 200)


def test_keys_are_unique_and_batches_follow_each_other() -> None:
    tasks = list(itertools.islice(intentions(7, Mix(batched=1.0)), 500))
    assert len({task.key for task in tasks}) == 500
    runs = [(size, len(list(group))) for size, group in itertools.groupby(task.batch for task in tasks)]
    assert all(length % size == 0 for size, length in runs[:-1] if size)


@pytest.mark.parametrize("name", MAKERS)
def test_a_mix_of_one_maker_makes_only_that(name: str) -> None:
    tasks = list(itertools.islice(intentions(3, Mix(weights={name: 1})), 50))
    assert all(task.wanted["state"] for task in tasks)
    assert all(bool(task.redrive) <= ("FAILED" in task.wanted["state"]) for task in tasks)


def _striking(strikes: tuple[Strike, ...], at: float) -> int:
    return sum(strike.at <= at <= strike.end for strike in strikes)
