"""The token that says who the client is: a text, a function, or a file that is read again when it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

from headrace.errors import HeadraceError
from headrace.file_state import State, read_together, state_of

VARIABLE = "HEADRACE_TOKEN"
FILE_VARIABLE = "HEADRACE_TOKEN_FILE"

Token: TypeAlias = str | Callable[[], str]


class TokenFile:
    """A token in a file, as Kubernetes rotates it. While a new one cannot be read, the old one is sent."""

    def __init__(self, path: str | Path) -> None:
        """Raises ValueError if there is no token in the file."""
        self._path = Path(path)
        self._state: State
        self._state, self._token = self._read()

    def __call__(self) -> str:
        """The token that is in the file now."""
        state = state_of([self._path])
        if state != self._state:
            self._state = state
            try:
                self._state, self._token = self._read()
            except ValueError:
                return self._token
        return self._token

    def _read(self) -> tuple[State, str]:
        def read() -> str:
            return _checked(self._path.read_text(encoding="utf-8").strip(), f"{FILE_VARIABLE}: {self._path}")

        try:
            return read_together([self._path], read)
        except OSError as error:
            raise ValueError(f"{FILE_VARIABLE}: {self._path} cannot be read: {error.strerror or error}") from error


class Bearer:
    """Sends the token with each call. Never shows it: no text of this class contains it."""

    def __init__(self, token: Token) -> None:
        """Raises ValueError for a token that no header can carry."""
        self._get = token if callable(token) else None
        self._value = "" if callable(token) else f"Bearer {_checked(token.strip(), 'token')}"

    @classmethod
    def of(cls, token: Token | None, environ: Mapping[str, str]) -> Bearer | None:
        """Of `token`, else of HEADRACE_TOKEN or HEADRACE_TOKEN_FILE; None: no token. Raises ValueError."""
        if token is not None:
            return cls(token)
        text, file = environ.get(VARIABLE), environ.get(FILE_VARIABLE)
        if text and file:
            raise ValueError(f"{VARIABLE} and {FILE_VARIABLE} are both set: leave one out")
        if file:
            return cls(TokenFile(file))
        return cls(text) if text else None

    def header(self) -> str:
        """The value of `authorization`. Raises HeadraceError if the caller's function gives no token."""
        if self._get is None:
            return self._value
        try:
            return f"Bearer {_checked(self._get(), 'token')}"
        except ValueError as error:
            raise HeadraceError(str(error)) from None


def refuse_to_shout(address: str, name: str) -> None:
    """Raise ValueError unless `address`, a gRPC target, stays on this machine: there a token may go unencrypted."""
    if not stays_here(address):
        raise ValueError(
            f"{name}: a token would go unencrypted to {address}; switch TLS on (HEADRACE_TLS, HEADRACE_TLS_CA_FILE) or "
            "send no token"
        )


def stays_here(address: str) -> bool:
    """Whether a gRPC target is a socket of this machine; a name other than localhost may be anywhere."""
    scheme, separator, rest = address.partition(":")
    if scheme in {"unix", "unix-abstract"} and separator:
        return True
    if scheme in {"dns", "ipv4", "ipv6"} and not rest.isdigit():
        address = rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest
    return all(_is_loopback(one) for one in address.split(","))


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0] if endpoint.count(":") == 1 or "]" in endpoint else endpoint
    host = host.strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked(token: str, where: str) -> str:
    """`token`; the message never shows it."""
    if not token:
        raise ValueError(f"{where}: there is no token")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{where}: a token is one word of printable ASCII characters")
    return token
