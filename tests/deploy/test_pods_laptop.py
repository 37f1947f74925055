"""The chart as a laptop gets it: everything applied at once, each container started as rendered, probed and stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace_core.stack.binaries import nats_server
from tests.deploy.cluster import Cluster
from tests.deploy.pod import Images
from tests.deploy.rendering import CHART, render
from tests.fixtures.servers import HANDLERS, PostgresSession

DATABASE = "headrace"
"""As the chart's URL names it."""
SETS = {
    "consumerPools.long.handlers": ["long_work"],
    **{f"{service}.preStopSeconds": 1 for service in ("producer", "status", "consumer")},
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.fixture
async def cluster(postgres_session: PostgresSession, tmp_path: Path) -> AsyncIterator[Cluster]:
    postgres_session.loop.run(postgres_session.server.create_database(DATABASE))
    postgres = f"127.0.0.1:{postgres_session.server.port}"
    images = Images({"PYTHONPATH": str(HANDLERS)}, {"nats": [str(nats_server()), "--addr", "0.0.0.0"]})
    objects = render(values_files=[CHART / "values-laptop.yaml"], sets=SETS)
    try:
        async with Cluster(objects, tmp_path, elsewhere={"headrace-postgres": postgres}, images=images) as cluster:
            yield cluster
    finally:
        postgres_session.loop.run(postgres_session.server.drop_database(DATABASE))


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_each_container_starts_as_rendered_answers_its_probes_and_ends_in_time(cluster: Cluster) -> None:
    (prepare,) = cluster.objects.all("Job")
    await cluster.start("StatefulSet")
    # As Kubernetes does: the pods are there before the schema and the streams, and wait for them.
    (code, said), _ = await asyncio.gather(cluster.run_job(prepare), cluster.start())
    assert code == 0, said
    assert sorted(pod.container["name"] for pod in cluster.pods) == [
        "consumer",
        "consumer",
        "nats",
        "producer",
        "status",
    ]
    for pod in cluster.pods:
        for probe in PROBES:
            assert await pod.passes(probe), (pod.identity, probe)
    await cluster.run_hooks("test")
    await cluster.stop()
    assert [ending.code for ending in cluster.endings] == [0] * 5
    assert all(ending.seconds < ending.limit for ending in cluster.endings)
