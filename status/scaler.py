"""ExternalScaler at the edge: what KEDA asks, answered from one reading that all its triggers share."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import grpc

from headrace_core.errors import DatabaseUnavailable, Violation
from headrace_core.tasks.figures import SharedReading
from headrace_core.tasks.scaling import QueueWork
from status.activity import Activity
from status.keda import external_scaler_pb2 as pb
from status.keda import external_scaler_pb2_grpc
from status.trigger import Trigger, parse, refuse

FULL_NAME = "externalscaler.ExternalScaler"

Context = grpc.aio.ServicerContext[Any, Any]
WorkReading = SharedReading[dict[str, QueueWork]]


class ScalerServicer(external_scaler_pb2_grpc.ExternalScalerServicer):
    """The methods. Errors are DomainErrors; headrace_core.rpc turns them into statuses."""

    def __init__(self, work: WorkReading, activity: Activity) -> None:
        self._work = work
        self._activity = activity

    async def IsActive(  # noqa: N802 - the proto's name
        self, request: pb.ScaledObjectRef, _context: Context
    ) -> pb.IsActiveResponse:
        """Whether there must be a consumer."""
        trigger, found = parse(request.scalerMetadata)
        await self._check(trigger, found)
        work = await self._work.latest()
        return pb.IsActiveResponse(result=trigger.active({name: queue.active for name, queue in work.items()}))

    async def StreamIsActive(  # noqa: N802 - the proto's name
        self, request: pb.ScaledObjectRef, _context: Context
    ) -> AsyncIterator[pb.IsActiveResponse]:
        """The same, live."""
        trigger, found = parse(request.scalerMetadata)
        if found:
            await self._check(trigger, found)
        with self._activity.observe(trigger) as observer:
            async with aclosing(observer.changes()) as changes:  # type: ignore[type-var]
                async for active in changes:
                    yield pb.IsActiveResponse(result=active)

    async def GetMetricSpec(  # noqa: N802 - the proto's name
        self, request: pb.ScaledObjectRef, _context: Context
    ) -> pb.GetMetricSpecResponse:
        """The metric and its target, also while Postgres is away: without them KEDA could not fall back."""
        trigger, found = parse(request.scalerMetadata)
        with suppress(DatabaseUnavailable):
            await self._check(trigger, found)
        spec = pb.MetricSpec(
            metricName=trigger.metric.name, targetSize=math.ceil(trigger.target), targetSizeFloat=trigger.target
        )
        return pb.GetMetricSpecResponse(metricSpecs=[spec])

    async def GetMetrics(  # noqa: N802 - the proto's name
        self, request: pb.GetMetricsRequest, _context: Context
    ) -> pb.GetMetricsResponse:
        """The metric as it is now."""
        trigger, found = parse(request.scaledObjectRef.scalerMetadata)
        name = trigger.metric.name
        if request.metricName != name:
            said = f"{request.metricName[:80]!r} is not the metric of these metadata, which is {name!r}"
            found.append(Violation("metricName", said))
        await self._check(trigger, found)
        value = trigger.value(await self._work.latest())
        # Rounded up for those who know no fractions: something is never nothing.
        metric = pb.MetricValue(metricName=name, metricValue=math.ceil(value), metricValueFloat=value)
        return pb.GetMetricsResponse(metricValues=[metric])

    async def _check(self, trigger: Trigger, found: list[Violation]) -> None:
        """Refuse what is wrong with a trigger. A queue that has been seen once is there: Postgres is not asked again.

        Raises:
            InvalidFields: something is wrong; every violation of it that is known of.
            DatabaseUnavailable: Postgres does not answer whether its queues are declared; all else is right.
        """
        known = self._work.last or {}
        if trigger.unknown(known):
            try:
                known = await self._work.latest(fresh=True)
            except DatabaseUnavailable:
                refuse(found)
                raise
        refuse(found + trigger.unknown(known))
