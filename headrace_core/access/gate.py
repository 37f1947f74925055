"""The gate in front of every method: who calls, and may they; built from the settings, or absent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from headrace_core.access.authenticator import Authenticator, Credentials, credentials_of
from headrace_core.access.identity import Identity
from headrace_core.access.streams import OpenStreams
from headrace_core.access.table import Where, authorize, row_of
from headrace_core.errors import PermissionDenied
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs
from headrace_core.tls.exposure import is_loopback

# How long a changed file is not noticed, at most.
LOOK_SECONDS = 1.0
# A token that has expired or was removed ends its streams within this and LOOK_SECONDS.
RECHECK_SECONDS = 5.0

log = logs.get(__name__)


Denied = Callable[[str, Any, Identity, str], Awaitable[None]]
"""The method, the request (None: its bytes are none), who called, from which address."""


async def _nobody(*_: object) -> None:
    """Nobody wants to be told."""


class Gate:
    """One for each process. `run` is a background task's work: without it no change of the file is noticed."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self._streams = OpenStreams(authenticator)
        self.denied: Denied = _nobody
        """Told of every call that is denied for its role."""

    @classmethod
    def of(cls, settings: ServiceSettings, listens: Sequence[str]) -> Self | None:
        """The gate, or None where HEADRACE_AUTH_FILE is not set; `listens`: where the service will answer.

        Raises SettingsError: the file cannot be used, or HEADRACE_REQUIRE_AUTH wants one.
        """
        if settings.auth_file is not None:
            return cls(Authenticator(settings.auth_file))
        exposed = [listen for listen in listens if not is_loopback(listen)]
        if exposed and settings.require_auth:
            raise SettingsError(
                f"HEADRACE_REQUIRE_AUTH is true and {exposed[0]} is more than loopback: set HEADRACE_AUTH_FILE"
            )
        if exposed:
            log.warning(
                "whoever reaches this address may do everything: no authentication is configured (HEADRACE_AUTH_FILE)",
                action="auth.off",
                listen=exposed,
            )
        return None

    async def admit(self, method: str, request: Any, credentials: Credentials, peer: str = "") -> Identity:
        """Who calls `method`; what is decided by what is found is left to the use case.

        Raises Unauthenticated, KeysUnavailable, PermissionDenied.
        """
        identity = await self._authenticator.identify(credentials)
        try:
            authorize(row_of(method), identity, request)
        except PermissionDenied as error:
            log.info("a call was denied", action="auth.denied", method=method, caller=identity.name, peer=peer)
            await self.denied(method, request, identity, peer)
            raise error
        return identity

    @asynccontextmanager
    async def kept(self, credentials: Credentials, identity: Identity) -> AsyncIterator[None]:
        """Around a stream, which ends when its caller's credentials do."""
        async with self._streams.kept(credentials, identity):
            yield

    async def run(self) -> None:
        """Notice changes of the file and ends of tokens, for ever."""
        clock = asyncio.get_running_loop().time
        checked_at = clock()
        await self._authenticator.refresh_keys()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            changed = self._authenticator.reload()
            if changed or clock() - checked_at >= RECHECK_SECONDS:
                await self._authenticator.refresh_keys()
                await self._streams.recheck()
                checked_at = clock()

    async def close(self) -> None:
        """End what is under way."""
        await self._authenticator.close()


def is_open(method: str) -> bool:
    """True for a method that needs no credentials. Raises PermissionDenied for one without a row."""
    return row_of(method).where is Where.OPEN


__all__ = ["Gate", "credentials_of", "is_open"]
