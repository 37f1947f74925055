"""Server reflection. It has a stream of requests, so it stands beside the methods that `handling` wraps.

It survives bytes that are no message: the library's would answer UNKNOWN and log a traceback.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from headrace_core.access.gate import Gate
from headrace_core.errors import DomainError
from headrace_core.rpc.caller import read_credentials
from headrace_core.rpc.status import status_of

METHOD = f"{reflection.SERVICE_NAME}/ServerReflectionInfo"


def enable_reflection(services: Sequence[str], server: grpc.aio.Server, gate: Gate | None) -> None:
    """Answer which services there are and how they are described, to whoever may know.

    Bytes that cannot be read get an error in the stream, INVALID_ARGUMENT, as a request does that asks for nothing.
    """
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(services, gate), _Tolerant(server))


class Reflection(ReflectionServicer):  # type: ignore[misc]  # the library has no types
    """Tells what the server has to whoever may know."""

    def __init__(self, services: Sequence[str], gate: Gate | None) -> None:
        super().__init__((*services, reflection.SERVICE_NAME))
        self._gate = gate

    async def ServerReflectionInfo(  # noqa: N802 - the name in the proto
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Answer each question of the stream."""
        if self._gate is not None:
            try:
                await self._gate.admit(METHOD, None, read_credentials(context))
            except DomainError as error:
                status = status_of(error)
                metadata = (("grpc-status-details-bin", status.SerializeToString()),)
                await context.abort(error.code, status.message, metadata)
        async for response in super().ServerReflectionInfo(request_iterator, context):
            yield response


class _Tolerant:
    """Between the generated function and the server."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """The same methods, already looked up by name: not needed."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the one method, with a deserializer that raises nothing."""
        methods = {
            name: grpc.stream_stream_rpc_method_handler(handler.stream_stream, _parse, handler.response_serializer)
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def _parse(data: bytes) -> Any:
    request = reflection_pb2.ServerReflectionRequest()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return reflection_pb2.ServerReflectionRequest()
    return request
