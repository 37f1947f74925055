"""The seam to gRPC: one lazily connected channel per service, one place where its errors become ours.

Where certificates are rotated, there is a second channel until the calls on the first have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from headrace import tracing
from headrace.bearer import Bearer, refuse_to_shout
from headrace.errors import ClientClosedError, UnavailableError, from_rpc_error
from headrace.handshakes import hint
from headrace.opening import Line, Opening, Security

Request = TypeVar("Request")
Response = TypeVar("Response")
# A retired channel is kept for so long although no call runs on it: one may be about to begin.
RETIRED_SECONDS = 60.0


class Connection:
    """A channel to one service, opened by the first call, on the loop of that call."""

    def __init__(self, name: str, address: str, security: Security = None, bearer: Bearer | None = None) -> None:
        """`name` is what messages call the service. Without `security` the connection is not encrypted.

        Raises ValueError for certificates that cannot be used, and for a `bearer` that others could read.
        """
        if bearer is not None and security is None:
            refuse_to_shout(address, name)
        self._where = f"the {name} at {address}"
        self._opening = Opening(address, security)
        self._bearer = bearer
        self._line: Line | None = None
        self._retired: list[Line] = []
        self._closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises ClientClosedError after `close`."""
        return self._current().channel

    def stub(self, make: Callable[[grpc.aio.Channel], Any]) -> Any:
        """Return the stub of the generated class `make`, made once.

        Untyped, because the generator types the one class twice: callers name its asynchronous type.
        """
        line = self._current()
        if make not in line.stubs:
            line.stubs[make] = make(line.channel)
        return line.stubs[make]

    async def close(self) -> None:
        """End the channel and every call on it. Idempotent."""
        self._closed = True
        lines = [*self._retired, *([] if self._line is None else [self._line])]
        self._line, self._retired = None, []
        for line in lines:
            await line.channel.close()

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call `method` once and return the answer; raises HeadraceError."""
        if self._retired:
            await self._hang_up()
        metadata = self._metadata()
        with self._translated(), self._calling():
            return await method(request, timeout=timeout, metadata=metadata)

    async def listen(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request, silence: float
    ) -> AsyncGenerator[Response]:
        """Open a stream and yield its messages until the server ends it with OK; raises HeadraceError.

        UnavailableError too if nothing comes for `silence` seconds.
        """
        call = method(request, metadata=self._metadata())
        try:
            with self._calling():
                while True:
                    with self._translated():
                        message = await self._read(call, silence)
                    if message is None:
                        return
                    yield message
        finally:
            call.cancel()

    async def _read(self, call: grpc.aio.UnaryStreamCall[Request, Response], silence: float) -> Response | None:
        try:
            async with asyncio.timeout(silence):
                message = await call.read()
        except TimeoutError:
            raise UnavailableError(f"{self._where} sent nothing for {silence:g} s") from None
        # The type of grpc.aio.EOF is private, so the checker cannot narrow by it.
        return None if message is grpc.aio.EOF else cast("Response", message)

    def _current(self) -> Line:
        """The channel for calls that begin now. Raises ClientClosedError after `close`."""
        if self._closed:
            raise ClientClosedError("the client is closed")
        if self._line is not None and self._opening.has_changed():
            self._line.retired_at = time.monotonic()
            self._retired.append(self._line)
            self._line = None
        if self._line is None:
            self._line = self._opening.line()
        return self._line

    async def _hang_up(self) -> None:
        """Close the retired channels that nobody uses any more."""
        before = time.monotonic() - RETIRED_SECONDS
        unused = [line for line in self._retired if not line.calls and line.retired_at < before]
        self._retired = [line for line in self._retired if line not in unused]
        for line in unused:
            await line.channel.close()

    def _metadata(self) -> list[tuple[str, str]] | None:
        bearer = () if self._bearer is None else (("authorization", self._bearer.header()),)
        return [*bearer, *(tracing.metadata() or ())] or None

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """While a call runs, its channel is not closed."""
        line = self._line
        if line is None:
            yield
            return
        line.calls += 1
        try:
            yield
        finally:
            line.calls -= 1

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            # A cancelled caller may read its own cut call as a refusal (CANCELLED) before the cancellation itself:
            # taken for a broken connection, it would be resumed, and Ctrl-C would be lost.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from error
            told = hint(error.details() or "", encrypted=self._opening.is_encrypted)
            raise from_rpc_error(error, where=self._where, hint=told) from error
        except asyncio.CancelledError:
            # Closing a channel cancels its calls without cancelling whoever waits for them.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ClientClosedError("the client was closed during the call") from None
            raise
