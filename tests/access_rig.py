"""Access files, tokens and an issuer of JSON Web Tokens for the tests, with keys served over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

ISSUER, AUDIENCE = "https://issuer.example", "headrace"


def token_of(name: str) -> str:
    """A token that tells whose it is."""
    return f"test-token-of-{name}-0123456789"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with this token."""
    return (("authorization", f"Bearer {token}"),)


def as_(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call by the static identity of this name."""
    return bearer(token_of(name))


def write_access_file(path: Path, tokens: Mapping[str, Sequence[str]], more: str = "") -> Path:
    """An access file with these tokens and their grants, replaced as a whole."""
    parts = [more]
    for name, grants in tokens.items():
        digest = hashlib.sha256(token_of(name).encode()).hexdigest()
        parts.append(f'[[tokens]]\nname = "{name}"\nsha256 = "{digest}"\ngrants = {json.dumps(list(grants))}\n')
    new = path.with_suffix(".new")
    new.write_text("\n".join(parts), encoding="utf-8")
    new.replace(path)
    return path


class Issuer:
    """Signs tokens. `keys` has its private keys by key id."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"first": ec.generate_private_key(ec.SECP256R1())}

    def jwks(self) -> bytes:
        """The public keys."""
        keys = []
        for key_id, key in self.keys.items():
            kind: Any = (
                jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
            )
            keys.append(json.loads(kind.to_jwk(key.public_key())) | {"kid": key_id, "use": "sig"})
        return json.dumps({"keys": keys}).encode()

    def token(self, key_id: str = "first", algorithm: str = "", **changes: Any) -> str:
        """A good token with these claims changed; None takes a claim away."""
        key = self.keys[key_id]
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "alice",
            "exp": int(time.time()) + 600,
            "headrace_grants": ["admin:own"],
        } | changes
        algorithm = algorithm or ("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, key, algorithm, {"kid": key_id})


def jwt_table(source: str, **more: str) -> str:
    """`[jwt]` for the issuer; `source` is `jwks_url = "…"` or `jwks_file = "…"`."""
    lines = [f"{key} = {value}" for key, value in more.items()]
    return "\n".join(["[jwt]", source, f'issuer = "{ISSUER}"', f'audience = "{AUDIENCE}"', *lines, ""])


class KeyServer:
    """Serves a key set over HTTP, and counts how often it is asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.status = "200 OK"
        self.asked = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(self.content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + self.content)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def key_server(content: bytes) -> AsyncIterator[KeyServer]:
    served = KeyServer(content)
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    async with server:
        yield served


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in the details of a failed call."""
    info = error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
