"""How a connection to NATS proves who it is, and who the server has to be.

Files are read at each connection, so that what is renewed on the disk is used without a restart.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headrace_core.bus.errors import AccessUnusable

if TYPE_CHECKING:
    from headrace_core.settings.environment import ServiceSettings

INBOX = "_INBOX"
_BLOCK = re.compile(r"-{3,}BEGIN ([A-Z ]+)-{3,}\s+(\S+)\s+-{3,}END \1-{3,}")
# A seed is base32 of two bytes that say what it is for, 32 of the key, and two of a check sum.
_SEED_BYTES, _PREFIX_BYTES, _SUM_BYTES = 36, 2, 2


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection shows and checks. The default: nothing, as to a server that asks nobody.

    `ca_file`: only servers certified by it, and only over TLS. `cert_file`, `key_file`: the client's own certificate.
    `user` with `password` or the content of `password_file`; or `credentials_file`, as nsc writes it. `inbox` begins
    the subjects on which answers come.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    credentials_file: Path | None = None
    inbox: str = INBOX

    @classmethod
    def of(cls, settings: ServiceSettings, user: str) -> Access:
        """What the settings say; `user` (`producer`, `admin`, …) chooses the inbox."""
        return cls(
            settings.nats_tls_ca_file,
            settings.nats_tls_cert_file,
            settings.nats_tls_key_file,
            settings.nats_user,
            settings.nats_password.get_secret_value(),
            settings.nats_password_file,
            settings.nats_credentials_file,
            f"{INBOX}.{settings.subject_prefix}-{user}",
        )

    @property
    def needs_tls(self) -> bool:
        """Whether a connection in the clear is refused, whatever the URL says."""
        return self.ca_file is not None or self.cert_file is not None

    def options(self) -> dict[str, Any]:
        """What nats-py's `connect` is told. Raises AccessUnusable, naming the file."""
        options: dict[str, Any] = {"inbox_prefix": self.inbox}
        if self.needs_tls:
            options["tls"] = self._context()
        if self.user:
            options |= {"user": self.user, "password": self._password()}
        if self.credentials_file is not None:
            options |= _credentials(self.credentials_file)
        return options

    def _password(self) -> str:
        return self.password if self.password_file is None else _text(self.password_file).strip()

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise AccessUnusable(f"{self.ca_file} holds no certificate of an authority: {_why(error)}") from error
        if self.cert_file is not None:
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except OSError as error:
                raise AccessUnusable(
                    f"{self.cert_file} and {self.key_file} are no certificate with its key: {_why(error)}"
                ) from error
        return context


def _credentials(file: Path) -> Mapping[str, Any]:
    """A user's JWT, and a signature by the seed of its key for whatever the server wants to have signed."""
    blocks = dict(_BLOCK.findall(_text(file)))
    token, seed = blocks.get("NATS USER JWT"), blocks.get("USER NKEY SEED")
    if token is None or seed is None:
        raise AccessUnusable(
            f"{file} is no credentials file of NATS: a user's JWT and the seed of its key are expected"
        )
    key = _key(seed, file)

    def sign(nonce: str) -> bytes:
        return base64.b64encode(key.sign(nonce.encode()))

    return {"user_jwt_cb": token.encode, "signature_cb": sign}


def _key(seed: str, file: Path) -> Ed25519PrivateKey:
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except ValueError:
        raw = b""
    if len(raw) != _SEED_BYTES or not seed.startswith("SU"):
        raise AccessUnusable(f"{file}: the seed is not one of a user's key (it begins with SU)") from None
    return Ed25519PrivateKey.from_private_bytes(raw[_PREFIX_BYTES:-_SUM_BYTES])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessUnusable(f"{file} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
