"""What a TLS server shows and asks for, read from files and found to fit together."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from headrace.file_state import State, read_together
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificate (with its chain), its key, and the authorities of clients are; all PEM.

    With `client_authorities` a client certificate of one of them is required.
    """

    certificate: Path
    key: Path
    client_authorities: Path | None = None

    @classmethod
    def of(cls, settings: ServiceSettings) -> TlsFiles | None:
        """As the environment names them; None: no TLS."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        return cls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)

    @property
    def paths(self) -> list[Path]:
        """All that are given."""
        given = (self.certificate, self.key, self.client_authorities)
        return [path for path in given if path is not None]


@dataclass(frozen=True, slots=True)
class Material:
    """The files' content, of one moment. `context` is made of the same; `expires` is the certificate's end."""

    certificate: bytes
    key: bytes
    client_authorities: bytes | None
    context: ssl.SSLContext
    expires: datetime

    @property
    def days_left(self) -> int:
        """Whole days until the certificate ends; below 0: it has ended."""
        return (self.expires - datetime.now(UTC)).days


class Unusable(ValueError):
    """Files that cannot secure anything; the text is a sentence: which variable, which file, what is wrong."""


def read(files: TlsFiles) -> tuple[State, Material]:
    """The material in `files` and their state. Raises SettingsError: unreadable, no PEM, not a pair, ended."""
    try:
        return read_together(files.paths, lambda: _read(files))
    except (OSError, Unusable) as error:  # OSError: a file that went away between two looks at it
        raise SettingsError(str(error)) from error


def _read(files: TlsFiles) -> Material:
    certificate = _content("HEADRACE_TLS_CERT_FILE", files.certificate)
    key = _content("HEADRACE_TLS_KEY_FILE", files.key)
    authorities = None
    if files.client_authorities is not None:
        authorities = _content("HEADRACE_TLS_CLIENT_CA_FILE", files.client_authorities)
    expires = _end_of(files.certificate, certificate)
    material = Material(certificate, key, authorities, _context(files), expires)
    if material.days_left < 0:
        raise Unusable(f"HEADRACE_TLS_CERT_FILE: the certificate in {files.certificate} ended on {expires:%Y-%m-%d}")
    return material


def _content(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(f"{variable}: {path} cannot be read: {error.strerror or error}") from error


def _end_of(path: Path, certificate: bytes) -> datetime:
    """The end of the first certificate, which is the server's own; the others are its chain."""
    from cryptography import x509  # noqa: PLC0415 - some megabytes that a service without TLS does not need

    try:
        return x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except ValueError as error:
        raise Unusable(f"HEADRACE_TLS_CERT_FILE: {path} holds no certificate in PEM") from error


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session is not verified again: a client whose authority was taken away could come back with it.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    try:
        # An encrypted key must end in an error: OpenSSL would ask for its password at the terminal, and wait.
        context.load_cert_chain(files.certificate, files.key, password="")
    except ssl.SSLError as error:
        raise Unusable(
            f"HEADRACE_TLS_KEY_FILE: {files.key} is not the key, unencrypted and in PEM, of the certificate in "
            f"{files.certificate} ({error.reason or 'no PEM'})"
        ) from error
    if files.client_authorities is not None:
        _require_clients_of(files.client_authorities, context)
    return context


def _require_clients_of(authorities: Path, context: ssl.SSLContext) -> None:
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise Unusable(f"HEADRACE_TLS_CLIENT_CA_FILE: {authorities} holds no certificate in PEM") from error
    context.verify_mode = ssl.CERT_REQUIRED
