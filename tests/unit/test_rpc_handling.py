"""A stream's generator is closed before its call counts as ended, wherever the call was when it ended."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from headrace_core.rpc.handling import _streamed


class GoneClient:
    """The context of a call whose client has left just as a response was written."""

    async def write(self, _response: Any) -> None:
        raise asyncio.CancelledError


async def test_a_call_that_ends_while_it_writes_closes_its_generator_first() -> None:
    closed = False

    async def watch(_request: Any, _context: Any) -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
        finally:
            await asyncio.sleep(0)  # cleaning up takes the loop a turn, as releasing a connection would
            closed = True

    context: Any = GoneClient()
    with pytest.raises(asyncio.CancelledError):
        await _streamed(watch)("request", context)
    assert closed
