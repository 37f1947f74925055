"""The chart on a cluster of loopback: installed, tested, upgraded under load, removed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import Client
from headrace.v1 import task_pb2
from headrace.watch import is_terminal
from headrace_core.stack.nats import NatsServer
from tests.deploy.cluster import Cluster
from tests.deploy.manifest import Object, secret
from tests.deploy.pod import Images
from tests.deploy.rendering import CHART, render
from tests.deploy.traffic import LONG_SECONDS, Traffic
from tests.fixtures.servers import HANDLERS

PRODUCER, STATUS = 50051, 50052
STEPS = int(LONG_SECONDS / 0.1)
# Waits are shorter than in production, so that the whole takes a minute; what is waited for is the same.
SETS = {
    "image.tag": "one",
    "nats.streamReplicas": 1,
    "consumer.handlers": ["long_work", "sample_handlers"],
    **{f"{service}.autoscaling.minReplicas": 2 for service in ("producer", "status", "consumer")},
    **{f"{service}.preStopSeconds": 1 for service in ("producer", "status", "consumer")},
    **{f"{service}.maxConnectionAgeSeconds": 5 for service in ("producer", "status")},
    **{f"{service}.maxConnectionAgeGraceSeconds": 1 for service in ("producer", "status")},
}


def rendered(**changes: Any) -> list[Object]:
    return render(values_files=[CHART / "values-production.yaml"], sets=SETS | changes)


@pytest.fixture
async def cluster(empty_database_url: str, nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    secrets = [secret("headrace-database", url=empty_database_url), secret("headrace-broker", url=nats_server.url)]
    async with Cluster([*rendered(), *secrets], tmp_path, images=Images({"PYTHONPATH": str(HANDLERS)})) as cluster:
        yield cluster


@pytest.mark.timeout(180)
@pytest.mark.slow
async def test_every_pod_is_replaced_under_load_and_nobody_notices(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.run_hooks("pre-install")
    await cluster.start()
    await cluster.run_hooks("test")
    producer, status = cluster.target("headrace-producer", PRODUCER), cluster.target("headrace-status", STATUS)
    async with Client(producer, status) as client:
        traffic = Traffic(client, tmp_path / "ledger")
        traffic.start()
        try:
            await traffic.until_submitted(20)
            await cluster.run_hooks("pre-upgrade")  # a second time, beside working pods
            await cluster.roll_out(rendered(**{"image.tag": "two"}))
            await traffic.finish()
            tasks = await traffic.read_all()
        finally:
            await traffic.close()
    assert not any(pod.liveness_failures for pod in cluster.pods)
    await cluster.stop()
    the_pods_ended_well(cluster)
    no_task_was_harmed(tasks)
    watches_were_complete(traffic)


def the_pods_ended_well(cluster: Cluster) -> None:
    assert len(cluster.endings) == 12  # each of six, and what replaced it
    assert {ending.code for ending in cluster.endings} == {0}
    assert all(ending.seconds < ending.limit for ending in cluster.endings)


def no_task_was_harmed(tasks: list[task_pb2.Task]) -> None:
    """Completed with the right result, and charged to no budget."""
    assert len(tasks) > 50
    for task in tasks:
        assert task.state == task_pb2.TASK_STATE_COMPLETED, task
        assert (task.budgets.failures, task.budgets.crashes) == (0, 0), task
        assert json.loads(task.result_json) == expected(task), task


def expected(task: task_pb2.Task) -> Any:
    if task.kind == "long-work":
        return {"steps": STEPS}
    if task.kind == "count-words":
        return {"total": 7, "parts": [4, 1, 2], "asked": 3}
    return json.loads(task.payload_json)


def watches_were_complete(traffic: Traffic) -> None:
    for task_id, events in traffic.shown.items():
        assert is_terminal(events[-1]), task_id
        numbers = [event.sequence for event in events]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), (task_id, numbers)
        assert not any(event.HasField("gap") for event in events), task_id
    assert traffic.ends_by_label == dict.fromkeys(traffic.shown, 1)
