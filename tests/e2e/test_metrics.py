"""Metrics of real services move where, and only where, the table of docs/monitoring.md says."""

import asyncio
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace import Client, errors
from headrace_core.stack.testing import SteeredStack
from headrace_core.telemetry.catalogue import name_of
from headrace_core.telemetry.metrics import CATALOGUE
from tests.e2e.running import lines_of
from tests.fixtures.waiting import eventually

# A killed consumer's successor belongs to the stack and ends with it.
pytestmark = pytest.mark.leaks_ok

Shown = dict[str, dict[str, float]]
"""Service → series with its labels in the order of their names, or a metric's sum → value."""
MOVED_BY = {name_of(described).removeprefix("headrace_"): described.moved_by for described in CATALOGUE}

OF_A_DAY = {
    "producer": [
        "submitted_total{kind=add,queue=default}",
        "submits_repeated_total{kind=add,queue=default}",
        "submits_refused_total{queue=,reason=UNKNOWN_KIND}",
        "submits_refused_total{queue=,reason=UNKNOWN_QUEUE}",
        "submits_refused_total{queue=,reason=INVALID_FIELDS}",
        *("submit_batch_size_count", "publish_batch_size_count", "published_total{level=normal}"),
        "relay_lag_seconds_count{path=queue}",
        *("rpc_seconds_count", "wakes_published_total"),
    ],
    "consumer": [
        "claims_total{queue=default,source=broker}",
        *("claim_batch_size_count", "settle_batch_size_count", "wait_seconds_count{queue=default}"),
        "run_seconds_count{outcome=succeeded,queue=default}",
        "run_seconds_count{outcome=raised,queue=default}",
        "run_seconds_count{outcome=planned,queue=default}",
        "task_seconds_count{queue=default,state=COMPLETED}",
        "task_seconds_count{queue=default,state=FAILED}",
        *("attempts_total{outcome=succeeded}", "attempts_total{outcome=raised}"),
        "attempts_charged_total{budget=failure,follows=failed}",
        *(
            "settled_total{settlement=complete}",
            "settled_total{settlement=plan}",
            "settled_total{settlement=fail}",
        ),
        *("dead_letters_total{reason=NON_RETRYABLE}", "wakes_published_total"),
    ],
    "status": ["rpc_seconds_count", "watch_events_sent_total", "wakes_received_total"],
}
"""What moves, and where, when tasks succeed, fail, are repeated, refused and watched."""


async def shown(stack: SteeredStack) -> Shown:
    """What all processes of each service show, added up."""
    pages = await asyncio.gather(
        *(
            asyncio.to_thread(_read, f"http://{service.addresses.ops}/metrics")
            for service in stack.stack.services.values()
        )
    )
    found: Shown = defaultdict(lambda: defaultdict(float))
    for name, page in zip(stack.stack.services, pages, strict=True):
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                metric = sample.name.removeprefix("headrace_")
                series = found[name.partition("-")[0]]
                series[metric] += sample.value
                series[f"{metric}{{{labels}}}"] += sample.value
    return found


def _read(url: str) -> str:
    """Nothing of a process that was killed."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.URLError:
        return ""


def moved(before: Shown, after: Shown, service: str, series: str) -> float:
    return after[service].get(series, 0.0) - before[service].get(series, 0.0)


async def all_moved(stack: SteeredStack, before: Shown, expected: Mapping[str, list[str]]) -> None:
    """Wait until every one of the series has moved in its service."""

    async def still() -> list[str]:
        after = await shown(stack)
        wanted = [(service, series) for service, names in expected.items() for series in names]
        return [f"{service}: {series}" for service, series in wanted if moved(before, after, service, series) <= 0]

    lacking: list[str] = []

    async def none_is_still() -> bool:
        lacking[:] = await still()
        return not lacking

    try:
        await eventually(none_is_still, within=20, what="every metric's move")
    except AssertionError as error:
        raise AssertionError(f"have not moved: {lacking}") from error


async def test_success_failure_and_refusal_are_counted_where_they_happen(
    client: Client, running_stack: SteeredStack, ledger: Path
) -> None:
    before = await shown(running_stack)
    tasks = [await client.submit("add", {"a": 1, "b": 2}, idempotency_key="metrics-of-success") for _ in range(2)]
    assert tasks[0].id == tasks[1].id
    failing = await client.submit("hopeless", {"ledger": str(ledger)})
    squares = await client.submit("squares", {"count": 3})
    with pytest.raises(errors.UnknownKindError):
        await client.submit("no-such-kind", {})
    with pytest.raises(errors.InvalidFieldsError):
        await client.submit('no-such-kind"}', {})
    with pytest.raises(errors.UnknownQueueError):
        await client.submit("add", {"a": 1, "b": 2}, queue="no-such-queue")
    async for _ in client.watch(squares.id, after_sequence=0):
        pass
    with pytest.raises(errors.TaskFailed):
        await client.result(failing.id, timeout=30)
    await client.result(tasks[0].id, timeout=30)
    await all_moved(running_stack, before, OF_A_DAY)
    after = await shown(running_stack)
    # One of each: what is counted twice would be seen here.
    assert moved(before, after, "producer", "submitted_total{kind=add,queue=default}") == 1
    assert moved(before, after, "producer", "submits_repeated_total{kind=add,queue=default}") == 1
    assert moved(before, after, "consumer", "task_seconds_count{queue=default,state=FAILED}") == 1
    assert moved(before, after, "consumer", "task_seconds_count{queue=default,state=COMPLETED}") == 2
    _assert_moved_only_where_said(before, after)
    assert not [series for series in after["producer"] if "no-such" in series]


def _assert_moved_only_where_said(before: Shown, after: Shown) -> None:
    for metric, services in MOVED_BY.items():
        for service in after:
            if not {service, "every service"} & set(services):
                for part in ("", "_count", "_sum"):
                    assert moved(before, after, service, f"{metric}{part}") == 0, f"{metric}{part} moved in {service}"


async def test_a_watch_is_seen_while_it_is_open(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    before = await shown(running_stack)
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    watch = aiter(client.watch(task.id))
    await anext(watch)
    await all_moved(running_stack, before, {"status": ["watchers", "watched_tasks", "queue_in_flight{queue=default}"]})
    release.touch()
    async for _ in watch:
        pass

    async def closed() -> bool:
        after = await shown(running_stack)
        return after["status"]["watchers"] == before["status"]["watchers"]

    await eventually(closed, within=10, what="the end of the watch")


async def test_a_takeover_and_its_charge_are_counted_by_the_producer(
    client: Client, running_stack: SteeredStack, ledger: Path, release: Path
) -> None:
    before = await shown(running_stack)
    task = await client.submit("waits", {"ledger": str(ledger), "release": str(release)})
    await eventually(lambda: lines_of(ledger), within=15)
    await running_stack.kill_consumer(task.id)
    charge = "attempts_charged_total{budget=interruption,follows=retry}"
    await all_moved(running_stack, before, {"producer": ["takeovers_total", charge]})
    release.touch()
    await client.result(task.id, timeout=30)


async def test_crashes_are_charged_as_such(client: Client, running_stack: SteeredStack, ledger: Path) -> None:
    before = await shown(running_stack)
    task = await client.submit("crashes", {"ledger": str(ledger)})
    with pytest.raises(errors.TaskFailed):
        await client.result(task.id, timeout=50)
    crashes = [f"attempts_charged_total{{budget=crash,follows={follows}}}" for follows in ("retry", "failed")]
    outcome = "run_seconds_count{outcome=crashed,queue=default}"
    await all_moved(running_stack, before, {"consumer": [*crashes, outcome, "dead_letters_total{reason=CRASHED}"]})


async def test_an_outage_of_the_broker_shows_in_every_service(client: Client, running_stack: SteeredStack) -> None:
    before = await shown(running_stack)
    for service in ("producer", "consumer", "status"):
        assert before[service]["broker_up{part=jetstream}"] > 0
        assert before[service]["ready"] > 0
        assert before[service]["db_connections{state=idle}"] > 0
        assert before[service]["build_info"] > 0
    await running_stack.lose_broker()

    async def away() -> bool:
        after = await shown(running_stack)
        ups = [after[service]["broker_up{part=connection}"] for service in ("producer", "consumer", "status")]
        return ups == [0, 0, 0] and after["consumer"]["mode{mode=fallback}"] > 0

    await eventually(away, within=20, what="the outage in the metrics")
    task = await client.submit("add", {"a": 1, "b": 2})
    await client.result(task.id, timeout=30)
    from_postgres = "claims_total{queue=default,source=postgres}"
    dropped = {"producer": ["wakes_dropped_total"], "consumer": ["wakes_dropped_total", from_postgres]}
    await all_moved(running_stack, before, dropped)
    await running_stack.restore_broker()
