"""Open streams and whether their callers may still have them: a token that is removed or expires ends its watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headrace_core.access.authenticator import Authenticator, Credentials
from headrace_core.access.identity import Identity
from headrace_core.errors import DomainError, GrantsChanged, KeysUnavailable, Unauthenticated


class _Open:
    """One stream: who opened it, and how it is ended."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.bound = asyncio.timeout(None)
        self.refusal: DomainError | None = None

    def end(self, refusal: DomainError) -> None:
        if self.refusal is None and not self.bound.expired():
            self.refusal = refusal
            self.bound.reschedule(asyncio.get_running_loop().time())


class OpenStreams:
    """The streams of one server, by their credentials: ten thousand of one token cost one look."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._open: dict[Credentials, set[_Open]] = {}

    @asynccontextmanager
    async def kept(self, credentials: Credentials, identity: Identity) -> AsyncIterator[None]:
        """Around the life of a stream. Raises Unauthenticated or GrantsChanged when `recheck` finds that out."""
        stream = _Open(identity)
        self._open.setdefault(credentials, set()).add(stream)
        try:
            async with stream.bound:
                yield
        except TimeoutError:
            if stream.refusal is None:
                raise
            raise stream.refusal from None
        finally:
            self._open[credentials].discard(stream)
            if not self._open[credentials]:
                del self._open[credentials]

    async def recheck(self) -> None:
        """Look at everybody's credentials again and end the streams of those who may have less than before."""
        for credentials in list(self._open):
            try:
                now = await self._authenticator.identify(credentials)
            except Unauthenticated as refusal:
                self._end_all(credentials, None, refusal)
            except KeysUnavailable:
                continue
            else:
                less = GrantsChanged("what you may see has become less; connect again and resume")
                self._end_all(credentials, now, less)

    def _end_all(self, credentials: Credentials, now: Identity | None, refusal: DomainError) -> None:
        for stream in list(self._open.get(credentials, ())):
            if now is None or not now.covers(stream.identity):
                stream.end(type(refusal)(refusal.message))
