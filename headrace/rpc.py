"""The seam to gRPC: one lazily connected channel per service, one place where its errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import grpc
import grpc.aio

from headrace import tracing
from headrace.config import channel_options
from headrace.errors import ClientClosedError, UnavailableError, from_rpc_error

Request = TypeVar("Request")
Response = TypeVar("Response")


class Connection:
    """A channel to one service, opened by the first call, on the loop of that call."""

    def __init__(self, name: str, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        """`name` is what messages call the service. Without `credentials` the connection is not encrypted."""
        self._where = f"the {name} at {address}"
        self._address = address
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[Callable[[grpc.aio.Channel], Any], Any] = {}
        self._closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel. Raises ClientClosedError after `close`."""
        if self._closed:
            raise ClientClosedError("the client is closed")
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    def stub(self, make: Callable[[grpc.aio.Channel], Any]) -> Any:
        """Return the stub of the generated class `make`, made once.

        Untyped, because the generator types the one class twice: callers name its asynchronous type.
        """
        channel = self.channel
        if make not in self._stubs:
            self._stubs[make] = make(channel)
        return self._stubs[make]

    async def close(self) -> None:
        """End the channel and every call on it. Idempotent."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def ask(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout: float
    ) -> Response:
        """Call `method` once and return the answer; raises HeadraceError."""
        with self._translated():
            return await method(request, timeout=timeout, metadata=tracing.metadata())

    async def listen(
        self, method: grpc.aio.UnaryStreamMultiCallable[Request, Response], request: Request, silence: float
    ) -> AsyncGenerator[Response]:
        """Open a stream and yield its messages until the server ends it with OK; raises HeadraceError.

        UnavailableError too if nothing comes for `silence` seconds.
        """
        call = method(request)
        try:
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

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=channel_options())
        return grpc.aio.secure_channel(self._address, self._credentials, options=channel_options())

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
            raise from_rpc_error(error, where=self._where) from error
        except asyncio.CancelledError:
            # Closing a channel cancels its calls without cancelling whoever waits for them.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ClientClosedError("the client was closed during the call") from None
            raise
