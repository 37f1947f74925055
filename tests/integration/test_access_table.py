"""Every method of every service, for every role, in one's own namespace, in another one's and in all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from google.rpc import status_pb2 as rpc_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from headrace.v1 import (
    dead_letter_pb2,
    producer_pb2,
    queue_pb2,
    status_pb2,
    status_pb2_grpc,
)
from headrace_core.access.table import TABLE
from headrace_core.settings.environment import load_settings
from headrace_core.tasks.cancel import cancel
from headrace_core.tasks.model import Fail
from headrace_core.tasks.outcome import error_json
from headrace_core.tasks.settle import settle
from status.app import StatusService
from status.keda import external_scaler_pb2, external_scaler_pb2_grpc
from status.limits import WatchLimits
from tests.access_rig import as_, reason_of, write_access_file
from tests.factories import a_holder, claimed, submitted
from tests.producer_harness import Harness, running_producer

ROLES = ("submit", "read", "operate", "admin")
PLACES = {"own": "own", "other": "other", "all": "*"}
OK, DENIED, MISSING, EMPTY = "OK", "PERMISSION_DENIED", "NOT_FOUND", "EMPTY"

READS = {"read", "operate", "admin"}
SUBMITS = {"submit", "admin"}
OPERATES = {"operate", "admin"}
# Method: who may, what those get who may so only in another namespace, and whether one's own is enough.
EXPECTED: dict[str, tuple[set[str], str, bool]] = {
    "SubmitTask": (SUBMITS, DENIED, True),
    "SubmitTasks": (SUBMITS, DENIED, True),
    "CancelTask": (SUBMITS | OPERATES, MISSING, True),
    "ListDeadLetters": (READS, EMPTY, True),
    "GetDeadLetter": (READS, MISSING, True),
    "RedriveDeadLetters": (OPERATES, EMPTY, True),
    "DiscardDeadLetters": (OPERATES, EMPTY, True),
    "RedriveDeadLetters by id": (OPERATES, MISSING, True),
    "DiscardDeadLetters by id": (OPERATES, MISSING, True),
    "ListQueues": (READS, OK, True),
    "GetQueue": (READS, OK, True),
    "PauseQueue": (OPERATES, DENIED, False),
    "ResumeQueue": (OPERATES, DENIED, False),
    "PurgeQueue": (OPERATES, DENIED, False),
    "GetTask": (READS, MISSING, True),
    "GetTask in full": (READS, MISSING, True),
    "ListTasks": (READS, EMPTY, True),
    "ListTasks of the namespace": (READS, EMPTY, True),
    "ListTasks by label": (READS, EMPTY, True),
    "WatchTask": (READS, MISSING, True),
    "WatchTask resumed": (READS, MISSING, True),
    "WatchTasks": (READS, MISSING, True),
    "WatchTasks resumed": (READS, MISSING, True),
    "WatchTasks by filter": (READS, EMPTY, True),
    "GetSystemStatus": (READS, OK, True),
    "GetInferenceStatus": (READS, OK, True),
    "IsActive": (READS, DENIED, False),
    "StreamIsActive": (READS, DENIED, False),
    "GetMetricSpec": (READS, DENIED, False),
    "GetMetrics": (READS, DENIED, False),
}
FILTER_EVENTS = 2
"""Of a watch by filter: a heartbeat, then the snapshot of the task that waits."""


@dataclass
class World:
    """Both services, and in namespace `own` a task that waits, one that has ended and one that has failed."""

    producer: Harness
    status: Any
    scaler: Any
    channel: grpc.aio.Channel
    waiting: str
    ended: str
    failed: str

    async def call(self, what: str, who: str) -> str:
        """How the call ends for `who`: OK, EMPTY or the reason."""
        metadata = as_(who)
        try:
            found = await getattr(self, "_" + what.split(" ", maxsplit=1)[0])(what, metadata)
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            return MISSING if error.code() is grpc.StatusCode.NOT_FOUND else reason
        return OK if found else EMPTY

    async def _SubmitTask(self, _what: str, metadata: Any) -> bool:
        request = producer_pb2.SubmitTaskRequest(kind="plain", namespace="own")
        return bool((await self.producer.tasks.SubmitTask(request, metadata=metadata)).created)

    async def _SubmitTasks(self, _what: str, metadata: Any) -> Any:
        batch = [producer_pb2.SubmitTaskRequest(kind="plain", namespace=name) for name in ("own", "nobodys")]
        request = producer_pb2.SubmitTasksRequest(requests=batch)
        answer = await self.producer.tasks.SubmitTasks(request, metadata=metadata)
        if answer.results[0].HasField("error"):
            assert answer.results[0].error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
            raise _denied()
        return answer.results[0].HasField("response")

    async def _CancelTask(self, _what: str, metadata: Any) -> Any:
        task = await submitted(self.producer.db, namespace="own")
        request = producer_pb2.CancelTaskRequest(id=str(task.id))
        return (await self.producer.tasks.CancelTask(request, metadata=metadata)).task.id

    async def _ListDeadLetters(self, _what: str, metadata: Any) -> Any:
        request = dead_letter_pb2.ListDeadLettersRequest()
        return (await self.producer.letters.ListDeadLetters(request, metadata=metadata)).dead_letters

    async def _GetDeadLetter(self, _what: str, metadata: Any) -> Any:
        request = dead_letter_pb2.GetDeadLetterRequest(id=self.failed)
        return (await self.producer.letters.GetDeadLetter(request, metadata=metadata)).dead_letter.id

    def _choice(self, what: str) -> dict[str, Any]:
        return {"ids": [self.failed]} if what.endswith("id") else {"filter": dead_letter_pb2.DeadLetterFilter()}

    async def _RedriveDeadLetters(self, what: str, metadata: Any) -> Any:
        request = dead_letter_pb2.RedriveDeadLettersRequest(dry_run=True, **self._choice(what))
        return (await self.producer.letters.RedriveDeadLetters(request, metadata=metadata)).matched

    async def _DiscardDeadLetters(self, what: str, metadata: Any) -> Any:
        request = dead_letter_pb2.DiscardDeadLettersRequest(dry_run=True, **self._choice(what))
        return (await self.producer.letters.DiscardDeadLetters(request, metadata=metadata)).matched

    async def _ListQueues(self, _what: str, metadata: Any) -> Any:
        return (await self.producer.queues.ListQueues(queue_pb2.ListQueuesRequest(), metadata=metadata)).queues

    async def _queue(self, method: str, request: Any, metadata: Any) -> bool:
        await getattr(self.producer.queues, method)(request, metadata=metadata)
        return True

    async def _GetQueue(self, what: str, metadata: Any) -> bool:
        return await self._queue(what, queue_pb2.GetQueueRequest(name="brief"), metadata)

    async def _PauseQueue(self, what: str, metadata: Any) -> bool:
        return await self._queue(what, queue_pb2.PauseQueueRequest(name="brief"), metadata)

    async def _ResumeQueue(self, what: str, metadata: Any) -> bool:
        return await self._queue(what, queue_pb2.ResumeQueueRequest(name="brief"), metadata)

    async def _PurgeQueue(self, what: str, metadata: Any) -> bool:
        return await self._queue(what, queue_pb2.PurgeQueueRequest(name="brief"), metadata)

    async def _GetTask(self, what: str, metadata: Any) -> Any:
        view = status_pb2.TASK_VIEW_FULL if what.endswith("full") else status_pb2.TASK_VIEW_BASIC
        request = status_pb2.GetTaskRequest(id=self.waiting, view=view)
        return (await self.status.GetTask(request, metadata=metadata)).task.id

    async def _ListTasks(self, what: str, metadata: Any) -> Any:
        namespace = "own" if "namespace" in what else ""
        labels = {"color": "red"} if "label" in what else {}
        wanted = status_pb2.TaskFilter(namespace=namespace, labels=labels)
        return (await self.status.ListTasks(status_pb2.ListTasksRequest(filter=wanted), metadata=metadata)).tasks

    async def _WatchTask(self, what: str, metadata: Any) -> Any:
        after = {"after_sequence": 1} if "resumed" in what else {}
        request = status_pb2.WatchTaskRequest(id=self.ended, **after)
        return [event async for event in self.status.WatchTask(request, metadata=metadata)]

    async def _WatchTasks(self, what: str, metadata: Any) -> Any:
        if "filter" in what:
            return await self._filter_watch(metadata)
        after = {self.ended: 1} if "resumed" in what else {}
        request = status_pb2.WatchTasksRequest(ids=[self.ended], after_sequences=after)
        return [event async for event in self.status.WatchTasks(request, metadata=metadata)]

    async def _filter_watch(self, metadata: Any) -> Any:
        """It shows the task that waits, and of a task that it resumes nothing unless it may be seen."""
        wanted = status_pb2.TaskFilter(labels={"color": "red"})
        call = self.status.WatchTasks(
            status_pb2.WatchTasksRequest(filter=wanted, after_sequences={self.ended: 1}), metadata=metadata
        )
        seen = []
        async for answer in call:
            seen.append(answer.event)
            # What begins with nothing to show begins with one heartbeat, and the next comes a while later.
            if [event for event in seen if event.task_id] or len(seen) > 1:
                break
        call.cancel()
        return [event for event in seen if event.task_id]

    async def _GetSystemStatus(self, _what: str, metadata: Any) -> bool:
        answer = await self.status.GetSystemStatus(status_pb2.GetSystemStatusRequest(), metadata=metadata)
        return bool(answer.system_status.service)

    async def _GetInferenceStatus(self, _what: str, metadata: Any) -> bool:
        await self.status.GetInferenceStatus(status_pb2.GetInferenceStatusRequest(), metadata=metadata)
        return True

    async def _IsActive(self, _what: str, metadata: Any) -> bool:
        await self.scaler.IsActive(external_scaler_pb2.ScaledObjectRef(), metadata=metadata)
        return True

    async def _StreamIsActive(self, _what: str, metadata: Any) -> bool:
        call = self.scaler.StreamIsActive(external_scaler_pb2.ScaledObjectRef(), metadata=metadata)
        found = await call.read()
        if found is grpc.aio.EOF:
            raise AssertionError("it ended")
        call.cancel()
        return True

    async def _GetMetricSpec(self, _what: str, metadata: Any) -> Any:
        answer = await self.scaler.GetMetricSpec(external_scaler_pb2.ScaledObjectRef(), metadata=metadata)
        return answer.metricSpecs

    async def _GetMetrics(self, _what: str, metadata: Any) -> Any:
        request = external_scaler_pb2.GetMetricsRequest(metricName="headrace-work")
        return (await self.scaler.GetMetrics(request, metadata=metadata)).metricValues


class _Denied(grpc.aio.AioRpcError):
    """A batch's item that was denied, as a whole call that was."""


def _denied() -> grpc.aio.AioRpcError:
    status = rpc_pb2.Status(code=7)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=DENIED, domain="headrace"))
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return _Denied(grpc.StatusCode.PERMISSION_DENIED, grpc.aio.Metadata(), trailing)


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    tokens = {f"{role}-{place}": [f"{role}:{name}"] for role in ROLES for place, name in PLACES.items()}
    tokens |= {"nothing": ["submit:elsewhere"], "mixed": ["read:elsewhere", "submit:own"]}
    tokens |= {"onlooker": ["read:own", "operate:elsewhere"]}
    path = write_access_file(tmp_path / "access.toml", tokens)
    environ = {
        "HEADRACE_DATABASE_URL": database_url,
        "HEADRACE_HTTP_LISTEN": "127.0.0.1:0",
        "HEADRACE_BROKER": "none",
        "HEADRACE_AUTH_FILE": str(path),
    }
    limits = WatchLimits(heartbeat=0.3)
    service = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=Path("/")), limits)
    async with running_producer(database_url, auth_file=path) as producer:
        try:
            await service.start()
            assert service.grpc_address is not None
            async with grpc.aio.insecure_channel(service.grpc_address) as channel:
                yield await _world(producer, channel)
            await service.drain()
        finally:
            await service.stop()


async def _world(producer: Harness, channel: grpc.aio.Channel) -> World:
    db, holder = producer.db, a_holder()
    failing = await submitted(db, namespace="own", max_attempts=1)
    unit = await claimed(db, holder, failing.id)
    await settle(db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error_json("ValueError", "ValueError", "x"))])
    ended = await submitted(db, namespace="own", labels={"color": "red"})
    await cancel(db, ended.id)
    waiting = await submitted(db, namespace="own", labels={"color": "red"})
    return World(
        producer,
        status_pb2_grpc.StatusServiceStub(channel),
        external_scaler_pb2_grpc.ExternalScalerStub(channel),
        channel,
        str(waiting.id),
        str(ended.id),
        str(failing.id),
    )


def expected(what: str, role: str, place: str) -> str:
    """What the table promises."""
    roles, elsewhere, own_is_enough = EXPECTED[what]
    if role not in roles:
        return DENIED
    if place == "all" or (place == "own" and own_is_enough):
        return OK
    return elsewhere


@pytest.mark.parametrize("role", ROLES)
async def test_every_method_in_every_namespace(world: World, role: str) -> None:
    found = {(what, place): await world.call(what, f"{role}-{place}") for what in EXPECTED for place in PLACES}
    assert found == {(what, place): expected(what, role, place) for what, place in found}


async def test_a_role_in_ones_own_namespace_and_another_elsewhere(world: World) -> None:
    """Who may submit there is told that reading is missing, not that there is nothing."""
    for what in ("GetTask", "WatchTask", "GetDeadLetter", "ListTasks of the namespace"):
        assert await world.call(what, "mixed") == DENIED
    assert await world.call("ListTasks", "mixed") == EMPTY


async def test_who_may_only_look_redrives_nothing_there(world: World) -> None:
    """By id it is denied in words; a filter reaches only what may be operated."""
    for what in ("RedriveDeadLetters", "DiscardDeadLetters"):
        assert await world.call(f"{what} by id", "onlooker") == DENIED
        assert await world.call(what, "onlooker") == EMPTY
    assert await world.call("ListDeadLetters", "onlooker") == OK
    assert await world.call("CancelTask", "onlooker") == DENIED


async def test_without_credentials_nothing_but_health_answers(world: World) -> None:
    for what in EXPECTED:
        assert await world.call(what, "nobody") == "UNAUTHENTICATED"
    health = health_pb2_grpc.HealthStub(world.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_needs_any_identity(world: World) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(world.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [answer async for answer in stub.ServerReflectionInfo(iter([question]))]
    assert reason_of(caught.value) == "UNAUTHENTICATED"
    answers = [a async for a in stub.ServerReflectionInfo(iter([question]), metadata=as_("nothing"))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert "headrace.v1.StatusService" in names


def test_every_method_of_every_service_has_its_row_and_its_expectation() -> None:
    pool = descriptor_pool.Default()
    services = [
        "headrace.v1.ProducerService",
        "headrace.v1.DeadLetterService",
        "headrace.v1.QueueService",
        "headrace.v1.StatusService",
        "externalscaler.ExternalScaler",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    methods = {f"{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods}
    assert {method for method in TABLE if not method.startswith("GET ")} == methods
    ours = {method.rpartition("/")[2] for method in methods if not method.startswith("grpc.")}
    assert {what.split(" ")[0] for what in EXPECTED} == ours
