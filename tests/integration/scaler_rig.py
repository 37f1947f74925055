"""KEDA's side of the external scaler, and the status service that it asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from headrace_core.settings.environment import load_settings
from headrace_core.stack.logins import as_service
from status.app import StatusService
from status.keda import external_scaler_pb2 as pb
from status.keda import external_scaler_pb2_grpc
from status.limits import ScalingLimits
from tests.fixtures.nats_users import as_user


class Keda:
    """What KEDA does with a scaler, with the metadata of one trigger."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = external_scaler_pb2_grpc.ExternalScalerStub(channel)
        self.channel = channel

    async def active(self, **metadata: str) -> bool:
        return bool((await self.stub.IsActive(a_ref(metadata), timeout=10)).result)

    async def spec(self, **metadata: str) -> pb.MetricSpec:
        (spec,) = (await self.stub.GetMetricSpec(a_ref(metadata), timeout=10)).metricSpecs
        assert isinstance(spec, pb.MetricSpec)
        return spec

    async def value(self, **metadata: str) -> float:
        """As KEDA reads it: the metric's name is taken from its spec."""
        name = (await self.spec(**metadata)).metricName
        request = pb.GetMetricsRequest(scaledObjectRef=a_ref(metadata), metricName=name)
        (value,) = (await self.stub.GetMetrics(request, timeout=10)).metricValues
        assert (value.metricName, value.metricValue) == (name, -(-value.metricValueFloat // 1))
        return float(value.metricValueFloat)

    def stream(self, **metadata: str) -> Stream:
        return Stream(self.stub.StreamIsActive(a_ref(metadata)))


class Stream:
    """An open StreamIsActive."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self, within: float = 10.0) -> bool | None:
        """The next state; None at the end."""
        async with asyncio.timeout(within):
            answer = await self.call.read()
        return None if answer is grpc.aio.EOF else bool(answer.result)


def a_ref(metadata: Mapping[str, str]) -> pb.ScaledObjectRef:
    """As KEDA sends it: with the keys that are its own."""
    sent = {"scalerAddress": "headrace-status:50052"} | dict(metadata)
    return pb.ScaledObjectRef(name="headrace-consumer", namespace="production", scalerMetadata=sent)


@asynccontextmanager
async def serving(
    database_url: str, nats_url: str | None = None, limits: ScalingLimits | None = None, **variables: str
) -> AsyncIterator[tuple[StatusService, Keda]]:
    """The status service in this process, and KEDA's connection to it. `variables`: small, without their prefix."""
    environ = {"HEADRACE_DATABASE_URL": as_service(database_url, "status"), "HEADRACE_HTTP_LISTEN": "127.0.0.1:0"}
    environ |= {"HEADRACE_NATS_URL": as_user(nats_url, "status")} if nats_url else {"HEADRACE_BROKER": "none"}
    environ |= {f"HEADRACE_{name.upper()}": value for name, value in variables.items()}
    settings = load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/"))
    service = StatusService(settings, scaling=limits)
    try:
        await service.start()
        assert service.grpc_address is not None
        async with grpc.aio.insecure_channel(service.grpc_address) as channel:
            yield service, Keda(channel)
        await service.drain()
    finally:
        await service.stop()
