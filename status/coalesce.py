"""Many callers that want rows at the same time share a statement.

The first caller is served at once; whoever comes while that statement runs waits for the next one. Ten thousand
watches that open together cost a handful of statements, a lone one waits for nobody. What a caller gets was read after
it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Coalescer(Generic[K, V]):
    """Collects keys and fetches them together, at most `max_keys` in one go and one go at a time.

    `fetch` must be bounded in time; what it raises reaches everybody who waited for that go.
    """

    def __init__(self, name: str, fetch: Callable[[list[K]], Awaitable[Mapping[K, V]]], *, max_keys: int) -> None:
        self._name = name
        self._fetch = fetch
        self._max_keys = max_keys
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._runner: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The value of `key`, None if there is none. Raises what the fetch raises."""
        return await asyncio.shield(self._ask(key))

    async def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """The values that exist, by key."""
        asked = {key: self._ask(key) for key in keys}
        if asked:
            await asyncio.wait(asked.values())
        found = {key: future.result() for key, future in asked.items()}
        return {key: value for key, value in found.items() if value is not None}

    async def close(self) -> None:
        """End the statement under way; those who wait are cancelled. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            await asyncio.wait({runner}, timeout=2.0)
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def _ask(self, key: K) -> asyncio.Future[V | None]:
        future = self._waiting.get(key)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._waiting[key] = future
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name=f"read {self._name}")
        return future

    async def _run(self) -> None:
        while self._waiting:
            keys = list(self._waiting)[: self._max_keys]
            batch = {key: self._waiting.pop(key) for key in keys}
            try:
                found = await self._fetch(keys)
            except asyncio.CancelledError:
                for future in batch.values():
                    future.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - it is handed to everybody who waits
                _fail(batch.values(), error)
            else:
                for key, future in batch.items():
                    if not future.done():
                        future.set_result(found.get(key))


def _fail(futures: Iterable[asyncio.Future[V | None]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            future.exception()  # those who waited may have gone: nobody else would look at it
