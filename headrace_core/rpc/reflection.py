"""Server reflection. It has a stream of requests, so it stands beside the methods that `handling` wraps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha._async import ReflectionServicer

from headrace_core.access.gate import Gate
from headrace_core.errors import DomainError
from headrace_core.rpc.caller import read_credentials
from headrace_core.rpc.status import status_of

METHOD = f"{reflection.SERVICE_NAME}/ServerReflectionInfo"


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
