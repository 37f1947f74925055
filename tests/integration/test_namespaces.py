"""Declared namespaces and their quotas: which exist, how fast, how many, and what is exempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from headrace.v1 import producer_pb2
from headrace.v1 import status_pb2 as pb
from headrace.v1.status_pb2_grpc import StatusServiceStub
from headrace_core.settings.environment import load_settings
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.queues import NamespaceSettings
from producer import namespaces as module
from producer.namespaces import Bucket
from status.app import StatusService
from tests.factories import submitted
from tests.fixtures.waiting import eventually
from tests.producer_harness import Harness, running_producer

DECLARED = [
    NamespaceSettings(name="slow", rate_limit=0.01),
    NamespaceSettings(name="small", max_backlog=2),
    NamespaceSettings(name="free"),
]


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The details of a failed call by their type's last name."""
    (value,) = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    found: dict[str, Any] = {}
    for detail in status_pb2.Status.FromString(value).details:
        kind = detail.type_url.rpartition(".")[2]
        message = getattr(error_details_pb2, kind)()
        detail.Unpack(message)
        found[kind] = message
    return found


async def refusal(call: Any) -> dict[str, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details_of(caught.value)
    assert found["ErrorInfo"].reason == "QUOTA_EXCEEDED"
    return found


async def test_the_rate_of_a_namespace_is_named_with_when_to_come_again(database_url: str) -> None:
    async with running_producer(database_url, namespaces=DECLARED) as producer:
        await producer.submit(namespace="slow", idempotency_key="once")
        found = await refusal(producer.submit(namespace="slow"))
        (violation,) = found["QuotaFailure"].violations
        assert violation.subject == "slow"
        assert "rate_limit" in violation.description
        assert dict(found["ErrorInfo"].metadata) == {"namespace": "slow", "quota": "rate_limit", "limit": "0.01"}
        assert 90 < found["RetryInfo"].retry_delay.seconds <= 100
        await producer.submit(namespace="free")
        # A repetition is no new task: neither refused nor counted (promise G2).
        again = await producer.submit(namespace="slow", idempotency_key="once")
        assert not again.created


async def test_a_repetition_costs_nothing_of_the_rate(database_url: str) -> None:
    slow = NamespaceSettings(name="slow", rate_limit=3.0)
    async with running_producer(database_url, namespaces=[slow]) as producer:
        bucket = producer.service._namespaces._buckets["slow"]
        bucket.rate = 0.001
        await producer.submit(namespace="slow", idempotency_key="once")
        for _ in range(5):
            assert not (await producer.submit(namespace="slow", idempotency_key="once")).created
        await producer.submit(namespace="slow")
        await producer.submit(namespace="slow")
        await refusal(producer.submit(namespace="slow"))


async def test_a_full_namespace_refuses_until_something_has_started(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.05)
    async with running_producer(database_url, namespaces=DECLARED) as producer:
        first = await producer.submit(namespace="small", idempotency_key="first")
        await producer.submit(namespace="small", queue="brief")
        found = await refusal(producer.submit(namespace="small"))
        assert dict(found["ErrorInfo"].metadata)["quota"] == "max_backlog"
        assert "2 waiting tasks" in found["QuotaFailure"].violations[0].description
        assert found["RetryInfo"].retry_delay.seconds == 1
        assert not (await producer.submit(namespace="small", idempotency_key="first")).created
        await producer.submit(namespace="free")
        # Counted again, it is as full as before: what was accepted is not counted twice, and not forgotten either.
        await producer.service._namespaces.refresh()
        await refusal(producer.submit(namespace="small"))
        await producer.tasks.CancelTask(producer_pb2.CancelTaskRequest(id=first.task.id))

        async def accepted() -> bool:
            try:
                return (await producer.submit(namespace="small")).created
            except grpc.aio.AioRpcError:
                return False

        await eventually(accepted, within=5)


async def test_a_backlog_that_others_filled_is_noticed_within_a_second(database_url: str) -> None:
    async with running_producer(database_url, namespaces=DECLARED) as producer:
        for _ in range(2):
            await submitted(producer.db, namespace="small")

        async def full() -> bool:
            return producer.service._namespaces._waiting == {"small": 2}

        await eventually(full, within=2.0)
        await refusal(producer.submit(namespace="small"))


async def test_each_task_of_a_batch_is_judged_on_its_own(database_url: str) -> None:
    async with running_producer(database_url, namespaces=DECLARED) as producer:
        names = ["small", "small", "small", "free", "nobodys", "default"]
        batch = [producer_pb2.SubmitTaskRequest(kind="plain", namespace=name) for name in names]
        answer = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=batch))
        # A batch is judged as it came: what it brings itself is in the figures once it is committed.
        codes = [result.error.code if result.HasField("error") else 0 for result in answer.results]
        assert codes[3:] == [0, grpc.StatusCode.NOT_FOUND.value[0], 0]
        later = await producer.tasks.SubmitTasks(producer_pb2.SubmitTasksRequest(requests=batch))
        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert [one.error.code for one in later.results[:3]] == [exhausted] * 3


@pytest.mark.parametrize(
    ("declared", "implicit", "exists"), [(DECLARED, False, False), (DECLARED, True, True), ([], False, True)]
)
async def test_which_namespaces_exist(
    database_url: str, declared: list[NamespaceSettings], implicit: bool, exists: bool
) -> None:
    async with running_producer(database_url, namespaces=declared, implicit_namespaces=implicit) as producer:
        await producer.submit()
        if exists:
            await producer.submit(namespace="nobodys")
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await producer.submit(namespace="nobodys")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert details_of(caught.value)["ErrorInfo"].reason == "UNKNOWN_NAMESPACE"


def test_a_bucket_keeps_a_second_and_gives_at_its_rate() -> None:
    bucket = Bucket(4.0, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0.0] * 4
    assert bucket.take(0.0) == pytest.approx(0.25)
    assert bucket.take(0.25) == 0.0
    assert [bucket.take(100.0) for _ in range(4)] == [0.0] * 4
    assert bucket.take(100.0) > 0
    bucket.give_back()
    assert bucket.take(100.0) == 0.0
    # A clock that goes back takes nothing away.
    assert bucket.take(50.0) > 0


async def test_the_watches_of_a_namespace_are_bounded_by_task_and_by_filter(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('[[namespaces]]\nname = "few"\nmax_watches = 1\n', encoding="utf-8")
    environ = {"HEADRACE_DATABASE_URL": database_url, "HEADRACE_HTTP_LISTEN": "127.0.0.1:0", "HEADRACE_BROKER": "none"}
    service = StatusService(load_settings(environ, default_listen="127.0.0.1:0", cwd=tmp_path))
    async with running_producer(database_url) as producer:
        try:
            await service.start()
            async with grpc.aio.insecure_channel(str(service.grpc_address)) as channel:
                await _watches_are_bounded(producer, StatusServiceStub(channel))
            await service.drain()
        finally:
            await service.stop()


async def _watches_are_bounded(producer: Harness, stub: Any) -> None:
    few, other = [str((await submitted(producer.db, namespace=name)).id) for name in ("few", "other")]
    open_watch = stub.WatchTask(pb.WatchTaskRequest(id=few))
    await open_watch.read()
    by_filter = pb.WatchTasksRequest(filter=pb.TaskFilter(namespace="few"))
    for call in (
        stub.WatchTask(pb.WatchTaskRequest(id=few)),
        stub.WatchTask(pb.WatchTaskRequest(id=few, after_sequence=0)),
        stub.WatchTasks(by_filter),
    ):
        found = await refusal(call.read())
        assert dict(found["ErrorInfo"].metadata) == {"namespace": "few", "quota": "max_watches", "limit": "1"}
        assert found["RetryInfo"].retry_delay.seconds == 5
    elsewhere = stub.WatchTask(pb.WatchTaskRequest(id=other))
    await elsewhere.read()
    open_watch.cancel()

    async def again() -> Any:
        call = stub.WatchTasks(by_filter)
        try:
            return await call.read()
        except grpc.aio.AioRpcError:
            return None
        finally:
            call.cancel()

    await eventually(again, within=5)
    elsewhere.cancel()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[namespaces]]\nname = "A"', "namespace A"),
        ('[[namespaces]]\nname = "a"\n[[namespaces]]\nname = "a"', "declared twice"),
        ('[[namespaces]]\nname = "a"\nrate = 1', "unknown key rate"),
    ],
)
def test_a_wrong_declaration_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "headrace.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=said):
        load_settings({}, default_listen="127.0.0.1:0", cwd=tmp_path)
