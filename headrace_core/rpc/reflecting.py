"""Server reflection that survives bytes that are no message: the library's would answer UNKNOWN and log a traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer


def enable_reflection(service_names: Sequence[str], server: grpc.aio.Server) -> None:
    """Answer which services there are and how they are described. Bytes that cannot be read get an error in the stream,
    INVALID_ARGUMENT, as a request does that asks for nothing.
    """
    names = (*service_names, reflection.SERVICE_NAME)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), _Tolerant(server))


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
