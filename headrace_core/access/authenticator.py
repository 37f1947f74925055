"""From credentials to an identity: static tokens, JSON Web Tokens, client certificates; and the file that changes."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jwt

from headrace_core.access.file import AccessFile, read_access_file, read_bounded
from headrace_core.access.identity import Identity
from headrace_core.access.keys import KeysError, KeySet, RemoteKeys
from headrace_core.access.tokens import Verified, refused, verify
from headrace_core.errors import Unauthenticated
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs

# What gRPC lets through as metadata; a JSON Web Token has 1 to 2 KB.
MAX_TOKEN_CHARACTERS = 8192
MAX_VERIFIED = 10_000
_BEARER = "bearer "

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a call brings. `digest` is the token's SHA-256; a token decides alone, whatever certificate there is."""

    digest: bytes = b""
    token: str = ""
    names: tuple[str, ...] = ()
    """Of the client's certificate."""

    def __repr__(self) -> str:
        """Without the token: this may end up in a log."""
        return "Credentials(…)"


def credentials_of(authorization: Iterable[str | bytes], names: Iterable[str] = ()) -> Credentials:
    """The credentials in the values of `authorization` (of which there may be one), else in the certificate's names.

    Raises Unauthenticated for values that are no bearer token.
    """
    values = list(authorization)
    if not values:
        return Credentials(names=tuple(names))
    value = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
    if len(value) > MAX_TOKEN_CHARACTERS:
        raise refused(f"it has more than {MAX_TOKEN_CHARACTERS} characters")
    token = value[len(_BEARER) :].strip()
    if value[: len(_BEARER)].lower() != _BEARER or not token or not token.isascii():
        raise Unauthenticated("authorization must be given once, as: Bearer <token>")
    return Credentials(hashlib.sha256(token.encode()).digest(), token)


class Authenticator:
    """Knows who calls. All methods belong to the event loop."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError if the file, or the keys that it names, cannot be used."""
        self._path = path
        self._verified: dict[bytes, Verified] = {}
        self._remote: RemoteKeys | None = None
        self._left: list[RemoteKeys] = []
        self._stamps = {path: _stamp(path)}
        self._file, self._local = self._load()
        self._choose_keys()

    async def identify(self, credentials: Credentials) -> Identity:
        """Who this is.

        Raises:
            Unauthenticated: nobody that is known here.
            KeysUnavailable: a JSON Web Token cannot be checked now.
        """
        if not credentials.token:
            return self._of_certificate(credentials.names)
        # A lookup by hash: its time says something of the hash, of which nobody can choose a part. The comparison that
        # decides takes the same time for all.
        entry = self._file.tokens.get(credentials.digest)
        if entry is not None and hmac.compare_digest(entry.digest, credentials.digest):
            return entry.identity
        known = self._verified.get(credentials.digest)
        if known is not None and known.until > time.time():
            return known.identity
        return await self._of_jwt(credentials)

    async def refresh_keys(self) -> None:
        """Fetch the issuer's keys again, if it is time for that."""
        if self._remote is not None:
            await self._remote.refresh()

    def reload(self) -> bool:
        """Read the file again if it, or the file of keys, has changed; True if something else holds now.

        What cannot be used is logged, and what held before goes on holding.
        """
        stamps = {path: _stamp(path) for path in self._stamps}
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self._file, self._local = self._load()
        except SettingsError as error:
            log.error("the access file was not taken over", action="auth.file_refused", error=error.message)
            return False
        self._choose_keys()
        self._forget()
        log.info("the access file was read again", action="auth.file_read", path=str(self._path))
        return True

    async def close(self) -> None:
        """End what is under way."""
        for remote in [*self._left, *([self._remote] if self._remote else [])]:
            await remote.close()

    def _of_certificate(self, names: tuple[str, ...]) -> Identity:
        for name, identity in self._file.certificates.items():
            if name in names:
                return identity
        if names:
            raise Unauthenticated("no name of the client's certificate is in the access file, and there is no token")
        raise Unauthenticated("credentials are needed: the metadata authorization: Bearer <token>")

    async def _of_jwt(self, credentials: Credentials) -> Identity:
        if self._file.jwt is None:
            raise refused("it is not in the access file")
        file = self._file
        verified = await verify(credentials.token, self._file.jwt, self._find_key)
        # While a key was fetched, another file may have come; what was verified by the old one is not kept.
        if file is self._file:
            while len(self._verified) >= MAX_VERIFIED:
                del self._verified[next(iter(self._verified))]
            self._verified[credentials.digest] = verified
        return verified.identity

    async def _find_key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        if self._local is not None:
            return self._local.find(key_id, algorithm)
        assert self._remote is not None, "the file has one source of keys"
        return await self._remote.find(key_id, algorithm)

    def _choose_keys(self) -> None:
        """Where the address is the same, its keys stay known."""
        url = self._file.jwt.jwks_url if self._file.jwt is not None else ""
        if self._remote is not None and self._remote.url == url:
            return
        if self._remote is not None:
            self._left.append(self._remote)
        self._remote = RemoteKeys(url, self._forget) if url else None

    def _forget(self) -> None:
        self._verified.clear()

    def _load(self) -> tuple[AccessFile, KeySet | None]:
        """Each stamp is from before its file is read: what changes meanwhile is noticed at the next look."""
        file = read_access_file(self._path)
        if file.keys_file is None:
            self._stamps = {self._path: self._stamps[self._path]}
            return file, None
        self._stamps = {self._path: self._stamps[self._path], file.keys_file: _stamp(file.keys_file)}
        try:
            return file, KeySet(read_bounded(file.keys_file))
        except KeysError as error:
            raise SettingsError(f"{file.keys_file} cannot be used: {error}") from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does, also where a link to it is moved, as Kubernetes does; None: it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - one call, and follows links
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
