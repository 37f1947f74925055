"""The access file (HEADRACE_AUTH_FILE): tokens by hash, names in certificates, how JSON Web Tokens are checked."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrace_core.access.identity import Grant, Identity
from headrace_core.settings.duration import Seconds
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.explain import explain

MAX_FILE_BYTES = 1024 * 1024
KEY_TYPES: Mapping[str, tuple[str, str]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "PS256": ("RSA", ""),
    "PS384": ("RSA", ""),
    "PS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""Algorithms that may be allowed, with the type and curve of their keys. Never `none` and HS*: nothing, or a
public key, would be the secret."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class JwtSettings(_Table):
    """`[jwt]`: whose tokens are accepted, and what in them says who may do what."""

    jwks_file: str = Field(default="", description="Keys of the issuer, a JWK Set; relative to the access file.")
    jwks_url: str = Field(default="", description="The same, fetched: https, or http on loopback.")
    issuer: str = Field(min_length=1, description="What `iss` must be.")
    audience: str = Field(min_length=1, description="What must be among `aud`.")
    algorithms: list[str] = Field(default=["RS256", "ES256", "EdDSA"], min_length=1)
    leeway: Seconds = Field(default=10.0, ge=0.0, le=300.0, description="How far clocks may be apart.")
    grants_claim: str = Field(default="headrace_grants", min_length=1, description="A list of `role:namespace`.")
    subject_claim: str = Field(default="sub", min_length=1, description="Who it is.")

    @model_validator(mode="after")
    def _one_source(self) -> JwtSettings:
        if bool(self.jwks_file) == bool(self.jwks_url):
            raise ValueError("give either jwks_file or jwks_url")
        return self

    @field_validator("jwks_url")
    @classmethod
    def _secure(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("it must begin with https://: whoever can change the keys on their way is every identity")
        if value and not parts.hostname:
            raise ValueError("it names no host")
        return value

    @field_validator("algorithms")
    @classmethod
    def _asymmetric(cls, value: list[str]) -> list[str]:
        if unknown := [name for name in value if name not in KEY_TYPES]:
            raise ValueError(f"{unknown[0]!r} is not allowed; one or more of {', '.join(KEY_TYPES)}")
        return value


class _Granted(_Table):
    name: str = Field(pattern=r"^[!-~]{1,128}$")
    grants: list[str] = Field(min_length=1)

    @field_validator("grants")
    @classmethod
    def _parsed(cls, value: list[str]) -> list[str]:
        for text in value:
            Grant.parse(text)
        return value

    def identity(self, kind: str) -> Identity:
        """Whom the table stands for."""
        return Identity(f"{kind}:{self.name}", map(Grant.parse, self.grants))


class TokenTable(_Granted):
    """`[[tokens]]`: a token, by its hash only."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def known(self) -> KnownToken:
        """The token as it is compared."""
        return KnownToken(bytes.fromhex(self.sha256), self.identity("token"))


class CertificateTable(_Granted):
    """`[[certificates]]`: a subject alternative name of client certificates."""


class _File(_Table):
    jwt: dict[str, Any] | None = None
    tokens: list[dict[str, Any]] = Field(default_factory=list)
    certificates: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KnownToken:
    """A static token: its SHA-256, and whom it stands for."""

    digest: bytes
    identity: Identity


@dataclass(frozen=True, slots=True)
class AccessFile:
    """What the file says. Tokens by their digest, certificates by name, in the file's order."""

    tokens: Mapping[bytes, KnownToken] = field(default_factory=dict)
    certificates: Mapping[str, Identity] = field(default_factory=dict)
    jwt: JwtSettings | None = None
    keys_file: Path | None = None
    """Where jwks_file points."""


def read_access_file(path: Path) -> AccessFile:
    """Read and check the file. Raises SettingsError naming it, the place and what is allowed; never a token or hash."""
    text = read_bounded(path)
    try:
        table = tomllib.loads(text.decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise SettingsError(f"{path} is no TOML: {error}") from None
    file = _checked(_File, table, str(path))
    jwt = _checked(JwtSettings, file.jwt, f"{path}: [jwt]") if file.jwt is not None else None
    tokens = [_checked(TokenTable, table, _place(path, "token", table, n)) for n, table in enumerate(file.tokens, 1)]
    names = [
        _checked(CertificateTable, table, _place(path, "certificate", table, n))
        for n, table in enumerate(file.certificates, 1)
    ]
    _unique(path, "token", (token.name for token in tokens))
    _unique(path, "certificate", (one.name for one in names))
    if len({token.sha256 for token in tokens}) < len(tokens):
        raise SettingsError(f"{path}: two tokens have the same sha256; every identity needs a token of its own")
    return AccessFile(
        {known.digest: known for known in (token.known() for token in tokens)},
        {one.name: one.identity("certificate") for one in names},
        jwt,
        path.parent / jwt.jwks_file if jwt is not None and jwt.jwks_file else None,
    )


def read_bounded(path: Path) -> bytes:
    """A file's bytes. Raises SettingsError if it cannot be read or is larger than MAX_FILE_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data


_T = TypeVar("_T", bound=BaseModel)


def _checked(model: type[_T], table: Any, where: str) -> _T:
    try:
        return model.model_validate(table)
    except ValidationError as error:
        # The hash is no token, and yet nobody's business in a log.
        if any("sha256" in found["loc"] for found in error.errors()):
            raise SettingsError(
                f"{where}: sha256 must be 64 hexadecimal digits in small letters; `headrace token new` makes an entry"
            ) from None
        raise SettingsError(f"{where}: {explain(error, model)}") from None


def _place(path: Path, kind: str, table: Mapping[str, Any], number: int) -> str:
    name = table.get("name")
    return f"{path}: {kind} {name if isinstance(name, str) else f'number {number}'}"


def _unique(path: Path, kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SettingsError(f"{path}: {kind} {name} is there twice; names must be unique")
        seen.add(name)
