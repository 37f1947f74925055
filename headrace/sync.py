"""The client for code that is not async: the same one, run on a loop in a thread of its own.

No method is written twice: each is made from the asynchronous one, with its signature and documentation.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from headrace.administration import DeadLetters, Queues
from headrace.bearer import Token
from headrace.client import Client
from headrace.config import DEFAULT_NAMESPACE, DEFAULT_TIMEOUT
from headrace.errors import ClientClosedError
from headrace.tls import Tls

P = ParamSpec("P")
T = TypeVar("T")
Owner = TypeVar("Owner")
CLOSE_SECONDS = 10.0


class _LoopThread:
    """An event loop in a daemon thread: owned by one client, ended by its close."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="headrace-sync-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` to its end, which bounds itself; an interrupt of the caller cancels it."""
        if not self._thread.is_alive():
            coroutine.close()
            raise ClientClosedError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosedError("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and end the thread. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_SECONDS)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end_calls())
        finally:
            self._loop.close()

    async def _end_calls(self) -> None:
        """Cancel what other threads still wait for, such as a pause between two tries."""
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


class _Blocking:
    """What the wrappers below need: the asynchronous object, and the loop that it lives on."""

    _target: Any
    _thread: _LoopThread


def _blocking(
    method: Callable[Concatenate[Owner, P], Awaitable[T]],
) -> Callable[Concatenate[_Blocking, P], T]:
    """Make a blocking method of an asynchronous one."""

    @functools.wraps(method)
    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def run() -> T:
            return await method(self._target, *args, **kwargs)

        return self._thread.run(run())

    return call


def _iterating(
    method: Callable[Concatenate[Owner, P], AsyncGenerator[T]],
) -> Callable[Concatenate[_Blocking, P], Iterator[T]]:
    """Make a plain generator of an asynchronous one. Closing it, or dropping it, closes the other."""

    @functools.wraps(method)
    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self._target, *args, **kwargs)
        try:
            while True:
                try:
                    yield self._thread.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            with contextlib.suppress(ClientClosedError):  # then the generator has been closed with the loop
                self._thread.run(_close(items))

    return call


def _direct(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[_Blocking, P], T]:
    """Pass on a method that does not block."""

    @functools.wraps(method)
    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self._target, *args, **kwargs)

    return call


async def _next(items: AsyncGenerator[T]) -> T:
    return await anext(items)


async def _close(items: AsyncGenerator[T]) -> None:
    await items.aclose()


class SyncDeadLetters(_Blocking):
    """`headrace.administration.DeadLetters`, blocking."""

    def __init__(self, target: DeadLetters, thread: _LoopThread) -> None:
        self._target = target
        self._thread = thread

    list = _iterating(DeadLetters.list)
    get = _blocking(DeadLetters.get)
    redrive = _blocking(DeadLetters.redrive)
    discard = _blocking(DeadLetters.discard)


class SyncQueues(_Blocking):
    """`headrace.administration.Queues`, blocking."""

    def __init__(self, target: Queues, thread: _LoopThread) -> None:
        self._target = target
        self._thread = thread

    list = _blocking(Queues.list)
    get = _blocking(Queues.get)
    pause = _blocking(Queues.pause)
    resume = _blocking(Queues.resume)
    purge = _blocking(Queues.purge)


class SyncClient(_Blocking):
    """`headrace.Client`, blocking: the same methods, arguments and errors. Use as `with SyncClient() as client`.

    May be used by several threads. Iterators (`watch`, `list`) block in their `next`. Not to be used after a fork.
    """

    def __init__(
        self,
        producer: str | None = None,
        status: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        silence_timeout: float = 45.0,
        reconnect_timeout: float = 120.0,
        tls: Tls | bool | None = None,
        token: Token | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Arguments as `headrace.Client`."""
        self._target: Client = Client(
            producer,
            status,
            namespace,
            timeout=timeout,
            silence_timeout=silence_timeout,
            reconnect_timeout=reconnect_timeout,
            tls=tls,
            token=token,
            credentials=credentials,
        )
        self._thread = _LoopThread()
        self.dead_letters = SyncDeadLetters(self._target.dead_letters, self._thread)
        self.queues = SyncQueues(self._target.queues, self._thread)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End both connections, every call on them, and the thread. Idempotent."""
        try:
            self._thread.run(self._target.close())
        except ClientClosedError:
            return
        self._thread.close()

    request = _direct(Client.request)
    submit = _blocking(Client.submit)
    submit_many = _blocking(Client.submit_many)
    get = _blocking(Client.get)
    cancel = _blocking(Client.cancel)
    watch = _iterating(Client.watch)
    watch_many = _iterating(Client.watch_many)
    result = _blocking(Client.result)
    wait = _blocking(Client.wait)
    list = _iterating(Client.list)
    system_status = _blocking(Client.system_status)
    inference_status = _blocking(Client.inference_status)
