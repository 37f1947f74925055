"""TLS of the client: whom it believes, and who it says it is; files that may be replaced while it runs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.file_state import State, read_together, state_of

SWITCH = "HEADRACE_TLS"
CA_FILE = "HEADRACE_TLS_CA_FILE"
CERT_FILE = "HEADRACE_CLIENT_CERT_FILE"
KEY_FILE = "HEADRACE_CLIENT_KEY_FILE"
WORDS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Pem:
    """What gRPC takes. None: gRPC's own authorities; no certificate."""

    authorities: bytes | None
    key: bytes | None
    certificate: bytes | None


@dataclass(frozen=True, slots=True)
class Tls:
    """An encrypted connection to a server whose name is verified. All files are PEM.

    `ca_file`: the authorities that are believed; None: the system's. `cert_file` and `key_file`: this client's own
    certificate and its key, for servers that require one; both or neither.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a certificate without its key, or the reverse."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError(f"a client certificate and its key need each other: {CERT_FILE} and {KEY_FILE}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Tls | None:
        """As HEADRACE_TLS and the three files say; a file alone switches TLS on, HEADRACE_TLS=false off. None: off.

        Raises ValueError.
        """
        word = environ.get(SWITCH, "").strip().lower()
        if word and word not in WORDS:
            raise ValueError(f"{SWITCH} = {word!r} is wrong: true or false")
        files = [environ.get(variable) or None for variable in (CA_FILE, CERT_FILE, KEY_FILE)]
        is_on = WORDS[word] if word else any(files)
        return cls(*files) if is_on else None

    def state(self) -> State:
        """What differs as soon as one of the files has been written or replaced."""
        return state_of(self._paths())

    def read(self) -> tuple[State, Pem]:
        """The files' content, of one moment, and their state. Raises ValueError: unreadable, no PEM, not a pair."""
        return read_together(self._paths(), self._read)

    def context(self) -> ssl.SSLContext:
        """For HTTPS. Raises ValueError as `read`."""
        return read_together(self._paths(), self._context)[1]

    def _paths(self) -> list[Path]:
        return [Path(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None]

    def _read(self) -> Pem:
        authorities = _system_authorities() if self.ca_file is None else _content(CA_FILE, self.ca_file)
        # gRPC would take anything and fail later, without saying why.
        self._context()
        if self.cert_file is None or self.key_file is None:
            return Pem(authorities, None, None)
        return Pem(authorities, _content(KEY_FILE, self.key_file), _content(CERT_FILE, self.cert_file))

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context() if self.ca_file is None else _believing(self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert_file is not None and self.key_file is not None:
            _content(CERT_FILE, self.cert_file)
            _content(KEY_FILE, self.key_file)
            _show(self.cert_file, self.key_file, context)
        return context


def _believing(ca_file: str | Path) -> ssl.SSLContext:
    _content(CA_FILE, ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"{CA_FILE}: {ca_file} holds no certificate in PEM") from error


def _show(cert_file: str | Path, key_file: str | Path, context: ssl.SSLContext) -> None:
    try:
        # An encrypted key must end in an error: OpenSSL would ask for its password at the terminal, and wait.
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        raise ValueError(
            f"{KEY_FILE}: {key_file} is not the key, unencrypted and in PEM, of the certificate in {cert_file} "
            f"({error.reason or 'no PEM'})"
        ) from error


def _content(variable: str, path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{variable}: {path} cannot be read: {error.strerror or error}") from error


def _system_authorities() -> bytes | None:
    found = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None
