"""Keys that tokens are verified with: a JWK Set from a file, or fetched, and again for an unknown key id."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt

from headrace_core.access.file import KEY_TYPES
from headrace_core.errors import KeysUnavailable
from headrace_core.telemetry import logs

MAX_KEYS_BYTES = 256 * 1024
MAX_KEYS = 100
FETCH_SECONDS = 5.0
# An unknown key id makes us ask the issuer; whoever sends many of them must not make us ask more often than this.
LEAST_SECONDS_BETWEEN = 5.0
# A key that the issuer has withdrawn is known as such after this long, whatever tokens come.
REFRESH_SECONDS = 300.0
LEAST_RSA_BITS = 2048

log = logs.get(__name__)


class KeysError(Exception):
    """What was read is no JWK Set that can be used, or could not be fetched. The message is one sentence."""


class KeySet:
    """The usable public keys of a JWK Set. Symmetric ones, and those for encryption, are passed over."""

    def __init__(self, data: bytes) -> None:
        """Raises KeysError if `data` is no JWK Set or none of its keys can be used."""
        self._keys = [key for key in _listed(data) if key.get("use", "sig") == "sig" and key.get("kty") != "oct"]
        self._ready: dict[tuple[str | None, str], jwt.PyJWK | None] = {}
        usable = [self._prepared(key, alg) for key in self._keys for alg in KEY_TYPES if _fits(key, alg)]
        if not any(usable):
            raise KeysError("there is no public key for signatures in the key set that can be used")

    def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of this id for this algorithm; without an id the only one that fits. None: there is none."""
        asked = (key_id, algorithm)
        if asked not in self._ready and (key_id is None or any(key.get("kid") == key_id for key in self._keys)):
            self._ready[asked] = self._look(key_id, algorithm)
        return self._ready.get(asked)

    def _look(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        fitting = [key for key in self._keys if _fits(key, algorithm) and key_id in (None, key.get("kid"))]
        return self._prepared(fitting[0], algorithm) if len(fitting) == 1 else None

    @staticmethod
    def _prepared(key: dict[str, Any], algorithm: str) -> jwt.PyJWK | None:
        public = {name: value for name, value in key.items() if name != "d"}
        try:
            prepared = jwt.PyJWK(public, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            return None
        bits = getattr(prepared.key, "key_size", LEAST_RSA_BITS)
        return None if key["kty"] == "RSA" and bits < LEAST_RSA_BITS else prepared


def _listed(data: bytes) -> list[dict[str, Any]]:
    try:
        keys = json.loads(data)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        keys = None
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise KeysError('it is no JWK Set: an object with a list "keys" of keys')
    if len(keys) > MAX_KEYS:
        raise KeysError(f"there are {len(keys)} keys in the key set; at most {MAX_KEYS} are read")
    return keys


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    """A key is used with one algorithm of its type only, and with the one that it names."""
    kind, curve = KEY_TYPES[algorithm]
    right_kind = key.get("kty") == kind and (not curve or key.get("crv") == curve)
    return right_kind and key.get("alg", algorithm) == algorithm


class RemoteKeys:
    """The keys at an address, kept in memory. While it cannot be reached, those that are known stay."""

    def __init__(self, url: str, changed: Callable[[], None]) -> None:
        """`changed` is called, on the loop, when other keys have come."""
        self.url = url
        self._changed = changed
        self._data = b""
        self._keys: KeySet | None = None
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """As KeySet.find; asks the issuer for what is not known. Raises KeysUnavailable while none is known at all."""
        found = self._keys.find(key_id, algorithm) if self._keys else None
        if found is None:
            await self.refresh(LEAST_SECONDS_BETWEEN)
            found = self._keys.find(key_id, algorithm) if self._keys else None
        if self._keys is None:
            raise KeysUnavailable("the keys that tokens are verified with cannot be fetched now; try again")
        return found

    async def refresh(self, unless_within: float = REFRESH_SECONDS) -> None:
        """Fetch the keys unless that was tried within so many seconds. A failure is logged, never raised."""
        if self._asking is None:
            if time.monotonic() - self._asked_at < unless_within:
                return
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._ask(), name="jwks")
        # Whoever gives up waiting does not end the question: others wait for its answer as well.
        await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Give up a question under way; its thread ends within FETCH_SECONDS."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    async def _ask(self) -> None:
        try:
            data = await asyncio.to_thread(fetch, self.url)
            if data != self._data:
                self._keys = await asyncio.to_thread(KeySet, data)
                self._data = data
                self._changed()
        except KeysError as error:
            log.warning(
                "the issuer's keys were not fetched; those that are known stay",
                action="auth.keys_unfetched",
                url=self.url,
                error=str(error),
            )
        finally:
            self._asking = None


def fetch(url: str, seconds: float = FETCH_SECONDS) -> bytes:
    """What `url` answers. Follows no redirect: that would be another address than the one configured.

    Raises KeysError: not reached, not answered with 200, or not done within `seconds` or MAX_KEYS_BYTES.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None, "the settings have checked it"
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    deadline = time.monotonic() + seconds
    try:
        connection = connect(parts.hostname, parts.port, timeout=seconds)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise KeysError(f"it answered {response.status}")
            return _read(response, deadline)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise KeysError(f"it cannot be reached: {type(error).__name__}: {error}"[:300]) from error


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read1(65536):
        data += chunk
        if len(data) > MAX_KEYS_BYTES:
            raise KeysError(f"its answer is larger than {MAX_KEYS_BYTES} bytes")
        if time.monotonic() > deadline:
            raise KeysError("its answer takes too long")
    return bytes(data)
