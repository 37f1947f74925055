"""A caller's own cancellation is never taken for a broken connection, which a watch would resume."""

import asyncio
from typing import NoReturn

import grpc
import pytest

from headrace.errors import UnavailableError
from headrace.rpc import Connection

CUT = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "Locally cancelled")


async def _cut(request: None, timeout: float, metadata: object) -> NoReturn:
    raise CUT


async def _cut_by_the_caller(request: None, timeout: float, metadata: object) -> NoReturn:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    raise CUT


async def test_a_call_that_the_caller_cancelled_is_cancelled() -> None:
    ask = Connection("status service", "127.0.0.1:1").ask
    call: asyncio.Task[None] = asyncio.create_task(ask(_cut_by_the_caller, None, 1.0))  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()


async def test_a_call_that_the_server_cut_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        await Connection("status service", "127.0.0.1:1").ask(_cut, None, 1.0)  # type: ignore[arg-type]
