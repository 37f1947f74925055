"""The gRPC server over real sockets: what a client reads when things go wrong, and what it sees of a drain."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from headrace.v1 import (
    error_pb2,
    producer_pb2,
    producer_pb2_grpc,
)
from headrace_core.errors import BacklogFull, DomainError, InvalidFields, TaskNotFound, Violation
from headrace_core.rpc.server import GrpcServer
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import metrics
from tests.integration.rpc_rig import (
    PRODUCER,
    STATUS,
    SUBMIT,
    WATCH,
    Producer,
    Status,
    accept,
    detail,
    failing,
    producer_stub,
    raw,
    raw_stream,
    refusal,
    serving,
    submit,
    watch_task,
)


async def test_a_call_is_answered() -> None:
    async with serving() as (_server, channel):
        assert (await submit(channel, kind="resize")).task.kind == "resize"


async def test_a_domain_error_reaches_the_client_with_reason_metadata_and_retry() -> None:
    error = BacklogFull("queue images holds 10 waiting tasks", retry_after=2.5, metadata={"queue": "images"})
    async with serving(failing(error)) as (_server, channel):
        refused, status = await refusal(submit(channel))
    info = detail(status, error_details_pb2.ErrorInfo)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details() == "queue images holds 10 waiting tasks"
    assert (info.domain, info.reason, dict(info.metadata)) == ("headrace", "BACKLOG_FULL", {"queue": "images"})
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2500
    assert detail(status, error_details_pb2.QuotaFailure).violations[0].subject == "images"


async def test_every_violation_reaches_the_client() -> None:
    violations = [Violation(f"labels[{n}]", "too long") for n in range(32)]
    async with serving(failing(InvalidFields.of(violations))) as (_server, channel):
        refused, status = await refusal(submit(channel))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = detail(status, error_details_pb2.BadRequest).field_violations
    assert [(one.field, one.description) for one in found] == [(one.field, one.description) for one in violations]


async def test_an_error_larger_than_a_header_may_be_is_cut_and_still_arrives() -> None:
    # Chinese is the worst case: on the wire each byte of the message takes three.
    violations = [Violation(f"requests[{n}].标签", "太长了" * 200) for n in range(1000)]
    metadata = {f"key{n}": "值" * 500 for n in range(100)}
    error = InvalidFields("错误" * 5000, violations=violations, metadata=metadata, retry_after=1.0)
    async with serving(failing(error)) as (_server, channel):
        refused, status = await refusal(submit(channel))
        for _ in range(20):  # between its soft and its hard limit gRPC refuses headers by chance
            refused, status = await refusal(submit(channel))
            assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = detail(status, error_details_pb2.BadRequest).field_violations
    assert found[-1].description == f"and {1000 - (len(found) - 1)} more"
    assert detail(status, error_details_pb2.ErrorInfo).reason == "INVALID_FIELDS"


async def test_a_defect_is_internal_and_hides_its_details(capfd: pytest.CaptureFixture[str]) -> None:
    async with serving(failing(RuntimeError("password is hunter2"))) as (_server, channel):
        refused, status = await refusal(submit(channel))
    assert refused.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(refused) + str(status)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info.reason == "INTERNAL"
    logged = capfd.readouterr()
    assert info.metadata["request_id"] in logged.out + logged.err
    assert "hunter2" in logged.out + logged.err


async def test_a_method_that_nobody_wrote_is_unimplemented() -> None:
    async with serving() as (_server, channel):
        stub = producer_stub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CancelTask(producer_pb2.CancelTaskRequest(id="x"), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as inherited:
            await health.List(health_pb2.HealthListRequest(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert inherited.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xc3\x28"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(data: bytes) -> None:
    async with serving(status=Status()) as (_server, channel):
        unary = raw(channel, SUBMIT)
        _, status = await refusal(unary(data, timeout=10))
        assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert detail(status, error_details_pb2.ErrorInfo).reason == "MALFORMED_MESSAGE"


async def test_so_they_are_for_a_stream_and_for_a_struct_that_is_nested_too_deep() -> None:
    payload: Any = 1
    for _ in range(60):
        payload = {"a": payload}
    deep = producer_pb2.SubmitTaskRequest(kind="echo", payload_json=json.dumps(payload).encode())
    async with serving(status=Status()) as (_server, channel):
        _, status = await refusal(raw_stream(channel, WATCH)(b"\xff\xff", timeout=10).read())
        assert detail(status, error_details_pb2.ErrorInfo).reason == "MALFORMED_MESSAGE"
        assert (await submit(channel)).created, "the connection goes on"
        deep_struct = _struct_request(60)
        _, status = await refusal(raw(channel, SUBMIT)(deep_struct, timeout=10))
        assert detail(status, error_details_pb2.ErrorInfo).reason == "MALFORMED_MESSAGE"
        answer = await raw(channel, SUBMIT)(deep.SerializeToString(), timeout=10)
        assert producer_pb2.SubmitTaskResponse.FromString(answer).created, "as text it is only bytes"


def _struct_request(depth: int) -> bytes:
    """SubmitTaskRequest.payload with objects in objects, by hand: the library refuses to build it."""

    def field(number: int, body: bytes) -> bytes:
        size, length = len(body), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + body

    struct = b""
    for _ in range(depth):
        struct = field(1, field(1, b"a") + field(2, field(5, struct)))
    return field(4, struct)


async def test_a_request_over_the_limit_is_resource_exhausted() -> None:
    async with serving() as (_server, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw(channel, SUBMIT)(b"x" * (8 * 1024 * 1024 + 1), timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_deadline_cancels_the_work() -> None:
    async def hang(_request: Any) -> producer_pb2.SubmitTaskResponse:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    producer = Producer(hang)
    async with serving(producer) as (_server, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit(channel, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await producer.cancelled.wait()


async def test_a_client_that_leaves_a_stream_closes_its_generator() -> None:
    status = Status()
    async with serving(status=status) as (_server, channel):
        watch = watch_task(channel)
        assert (await watch.read()).event.sequence == 1
        watch.cancel()
        async with asyncio.timeout(5):
            await status.closed.wait()


async def test_reflection_lists_and_describes_the_services() -> None:
    async with serving(status=Status()) as (_server, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def asked() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=PRODUCER)

        listed, described = [answer async for answer in stub.ServerReflectionInfo(asked(), timeout=10)]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {PRODUCER, STATUS, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert b"SubmitTaskRequest" in described.file_descriptor_response.file_descriptor_proto[0]


async def test_health_knows_the_services_and_follows_set_serving() -> None:
    async with serving() as (server, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", PRODUCER):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        server.set_serving(False)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_drain_lets_running_calls_finish_and_refuses_new_ones() -> None:
    go_on = asyncio.Event()

    async def wait(request: Any) -> producer_pb2.SubmitTaskResponse:
        await go_on.wait()
        return await accept(request)

    producer = Producer(wait)
    async with serving(producer) as (server, channel):
        running = asyncio.create_task(submit(channel))
        await producer.entered.wait()
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert (await health.read()).status == health_pb2.HealthCheckResponse.SERVING
        stop = asyncio.create_task(server.stop(10.0))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        refused, status = await refusal(submit(channel))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert detail(status, error_details_pb2.ErrorInfo).reason == "DRAINING"
        assert detail(status, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 100
        go_on.set()
        assert (await running).created
        async with asyncio.timeout(5):
            assert await health.read() is grpc.aio.EOF, "the watch on health ends with OK and holds nothing up"
            await stop


async def test_a_drain_tells_streams() -> None:
    status = Status()
    async with serving(status=status) as (server, channel):
        watch = watch_task(channel)
        await watch.read()
        stop = asyncio.create_task(server.stop(10.0))
        refused, told = await refusal(watch.read())
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert detail(told, error_details_pb2.ErrorInfo).reason == "DRAINING"
        async with asyncio.timeout(5):
            await stop


async def test_what_does_not_finish_within_the_grace_period_is_cancelled() -> None:
    async def hang(_request: Any) -> producer_pb2.SubmitTaskResponse:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    producer = Producer(hang)
    async with serving(producer) as (server, channel):
        running = asyncio.create_task(submit(channel))
        await producer.entered.wait()
        async with asyncio.timeout(5):
            await server.stop(0.2)
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        assert producer.cancelled.is_set()
        await server.stop(0.2)  # idempotent


async def test_calls_beyond_the_limit_are_refused_with_a_reason() -> None:
    go_on = asyncio.Event()

    async def wait(request: Any) -> producer_pb2.SubmitTaskResponse:
        await go_on.wait()
        return await accept(request)

    producer = Producer(wait)
    async with serving(producer, max_calls=1) as (_server, channel):
        running = asyncio.create_task(submit(channel))
        await producer.entered.wait()
        refused, status = await refusal(submit(channel))
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(status, error_details_pb2.ErrorInfo).reason == "SERVER_LIMIT"
        go_on.set()
        await running
        assert (await submit(channel)).created


async def test_a_burst_of_calls_is_not_refused() -> None:
    async with serving() as (_server, channel):
        answers = await asyncio.gather(*(submit(channel, timeout=30.0) for _ in range(3000)))
    assert all(answer.created for answer in answers)


async def test_the_time_of_calls_is_measured_by_method_and_code() -> None:
    def count(code: str) -> float:
        labels = {"method": f"{PRODUCER}/SubmitTask", "code": code}
        return metrics.REGISTRY.get_sample_value("headrace_rpc_seconds_count", labels) or 0.0

    ok, missing = count("OK"), count("NOT_FOUND")
    async with serving() as (_server, channel):
        await submit(channel)
    async with serving(failing(TaskNotFound("no such task"))) as (_server, channel):
        await refusal(submit(channel))
    assert (count("OK") - ok, count("NOT_FOUND") - missing) == (1.0, 1.0)


async def test_an_address_that_is_taken_is_a_setting_that_cannot_work() -> None:
    async with serving() as (_server, channel):
        other = GrpcServer("127.0.0.1:0", name="other")
        address = await other.start()
        third = GrpcServer(address, name="third")
        with pytest.raises(SettingsError, match=re.escape(f"cannot listen on {address}")):
            await third.start()
        await other.stop(0.0)
        assert (await submit(channel)).created


def test_a_service_is_registered_under_its_own_name() -> None:
    server = GrpcServer("127.0.0.1:0", name="test")
    with pytest.raises(ValueError, match=r"headrace.v1.Other was announced"):
        server.add(producer_pb2_grpc.add_ProducerServiceServicer_to_server, Producer(), "headrace.v1.Other")


def test_every_domain_error_has_a_reason_of_the_api() -> None:
    found = DomainError.__subclasses__()
    assert len(found) == 24
    for error in found:
        assert f"REASON_{error.reason}" in error_pb2.Reason.keys()  # noqa: SIM118 - an enum, not a dict
