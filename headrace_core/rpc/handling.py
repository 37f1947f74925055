"""What happens around every method: admission, malformed bytes, errors to statuses, the time it took.

Each method gets one thin wrapper, built when it is registered. grpc.aio's own interceptors would cost a coroutine and a
handler lookup for every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]

from headrace_core.access.gate import Gate, is_open
from headrace_core.errors import DomainError, MalformedMessage, PermissionDenied
from headrace_core.rpc.admission import Admission
from headrace_core.rpc.caller import Call, read_credentials
from headrace_core.rpc.status import internal_status, number_of, status_of
from headrace_core.telemetry import logs, metrics, tracing

DETAILS_KEY = "grpc-status-details-bin"
CODES = {number_of(code): code for code in grpc.StatusCode}

log = logs.get(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncIterator[Any]]


Salvage = Callable[[bytes], Any]
"""What can be made of bytes that the generated deserializer refuses. Raises DomainError, or DecodeError: nothing."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a request whose bytes are no message: grpc.aio by itself would answer UNKNOWN."""

    error: DomainError


def wrapped(
    service: str,
    handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]],
    admission: Admission,
    salvage: Mapping[str, Salvage] = MappingProxyType({}),
    gate: Gate | None = None,
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """The same methods with everything around them. Raises TypeError for one that takes a stream of requests.

    `salvage` has, by the method's name, what is tried with a request that cannot be parsed. `gate` says who may call;
    without one everybody may.
    """
    return {
        name: _wrapped_one(f"{service}/{name}", handler, admission, salvage.get(name), gate)
        for name, handler in handlers.items()
    }


def _wrapped_one(
    method: str,
    handler: grpc.RpcMethodHandler[Any, Any],
    admission: Admission,
    salvage: Salvage | None,
    gate: Gate | None,
) -> grpc.RpcMethodHandler[Any, Any]:
    if handler.request_streaming:
        raise TypeError(f"{method} takes a stream of requests; no method of Headrace does")
    parse = _tolerant(method, handler.request_deserializer, salvage)
    if handler.response_streaming:
        assert handler.unary_stream is not None
        stream = _kept(_counted(_streamed(handler.unary_stream), admission), gate)
        behaviour = _guarded(method, stream, admission, gate)
        return grpc.unary_stream_rpc_method_handler(
            behaviour,
            request_deserializer=parse,
            response_serializer=handler.response_serializer,
        )
    # The stubs know the behaviours of the threaded server only.
    unary: Any = handler.unary_unary
    return grpc.unary_unary_rpc_method_handler(
        _traced(method, _guarded(method, unary, admission, gate)),
        request_deserializer=parse,
        response_serializer=admission.unsent.counting(handler.response_serializer),
    )


def _tolerant(
    method: str, deserializer: Callable[[bytes], Any] | None, salvage: Salvage | None
) -> Callable[[bytes], Any]:
    assert deserializer is not None, "generated handlers bring their deserializer"

    def parse(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError as error:
            refusal: DomainError = MalformedMessage(f"the bytes are no request of {method}: {error}")
        try:
            return salvage(data) if salvage is not None else Malformed(refusal)
        except DomainError as error:
            return Malformed(error)
        except DecodeError:
            return Malformed(refusal)

    return parse


def _counted(behaviour: Unary, admission: Admission) -> Unary:
    """A stream counts against what its client may have open."""

    async def call(request: Any, context: Context) -> Any:
        with admission.stream_of(context.peer()):
            return await behaviour(request, context)

    return call


def _kept(behaviour: Unary, gate: Gate | None) -> Unary:
    """A stream ends when its caller may have it no longer."""
    if gate is None:
        return behaviour

    async def call(request: Any, context: Context) -> Any:
        if not isinstance(context, Call):  # a method that is open to everybody
            return await behaviour(request, context)
        async with gate.kept(context.credentials, context.identity):
            return await behaviour(request, context)

    return call


def _streamed(behaviour: Any) -> Unary:
    """A stream as one coroutine. A generator is closed before the call counts as ended, whatever ended it."""
    if not inspect.isasyncgenfunction(behaviour):
        return behaviour  # type: ignore[no-any-return]  # writes to its context by itself
    generate: Stream = behaviour

    async def write_all(request: Any, context: Context) -> None:
        async with contextlib.aclosing(generate(request, context)) as responses:  # type: ignore[type-var]
            async for response in responses:
                await context.write(response)

    return write_all


def _guarded(method: str, behaviour: Unary, admission: Admission, gate: Gate | None) -> Unary:
    seconds = _Seconds(method)
    admit = _admitting(method, gate)

    async def call(request: Any, context: Context) -> Any:
        started = time.perf_counter()
        code = "CANCELLED"  # what a cancellation, which passes through here, leaves it at
        try:
            admission.enter()
            try:
                admission.unsent.admit(context)
                if admit is not None:
                    context = await admit(request, context)
                if type(request) is Malformed:
                    raise request.error
                response = await behaviour(request, context)
            finally:
                admission.leave()
            code = "OK"
            return response
        except grpc.aio.AbortError:
            code = "ABORTED_BY_SERVICER"
            raise
        except Exception as error:  # noqa: BLE001 - the edge: every defect becomes INTERNAL, and is logged
            status = _status_of_any(error, method)
            code = CODES[status.code].name
            await _abort(context, status)
        finally:
            seconds.observe(code, time.perf_counter() - started)

    return call


def _traced(method: str, behaviour: Unary) -> Unary:
    """With a span of its own for each call, where traces are on when the server is built; not for health."""
    if tracing.spans is None or method.startswith("grpc.health."):
        return behaviour

    async def call(request: Any, context: Context) -> Any:
        spans = tracing.spans
        if spans is None:
            return await behaviour(request, context)
        with spans.rpc(method, context.invocation_metadata()) as ended:
            code = "CANCELLED"  # as in _guarded
            try:
                response = await behaviour(request, context)
                code = "OK"
                return response
            except grpc.aio.AbortError:
                code = _code_name(context)
                raise
            finally:
                ended(code)

    return call


def _code_name(context: Context) -> str:
    code: Any = context.code()
    return CODES[code].name if isinstance(code, int) else str(code.name)


def _admitting(method: str, gate: Gate | None) -> Unary | None:
    """What gives a call its caller, or refuses it; None where nobody is asked. A method without a row is denied."""
    if gate is None or _needs_nothing(method):
        return None

    async def admit(request: Any, context: Context) -> Any:
        credentials = read_credentials(context)
        wanted = None if type(request) is Malformed else request
        return Call(context, credentials, await gate.admit(method, wanted, credentials, context.peer()))

    return admit


def _needs_nothing(method: str) -> bool:
    try:
        return is_open(method)
    except PermissionDenied:
        return False


class _Seconds:
    """The histogram's children of one method: looking one up by its labels costs more than observing."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._by_code: dict[str, Any] = {}

    def observe(self, code: str, seconds: float) -> None:
        child = self._by_code.get(code)
        if child is None:
            child = self._by_code[code] = metrics.rpc_seconds.labels(self._method, code)
        child.observe(seconds)


def _status_of_any(error: Exception, method: str) -> status_pb2.Status:
    if isinstance(error, DomainError):
        return status_of(error)
    if isinstance(error, NotImplementedError):
        return status_pb2.Status(code=number_of(grpc.StatusCode.UNIMPLEMENTED), message=f"{method} is not implemented")
    request_id = uuid.uuid4().hex
    log.error("a call failed for a defect", action="rpc.internal", method=method, request_id=request_id, exc_info=error)
    return internal_status(request_id)


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    metadata = ((DETAILS_KEY, status.SerializeToString()),)
    try:
        await context.abort(CODES[status.code], status.message, metadata)
    except grpc.aio.InternalError as gone:
        # So grpc.aio says that the call was over already. Left alone, it logs this as a defect, with a traceback.
        log.debug("the client left before its answer", action="rpc.client_gone", code=CODES[status.code].name)
        raise asyncio.CancelledError from gone
