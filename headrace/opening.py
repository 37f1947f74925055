"""Opening channels to one address, and noticing that rotated certificates call for another channel.

gRPC keeps the certificates that a channel was made with for all of its connections. So a channel is replaced by one
with the new files; calls that run on the old one end on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio

from headrace.config import channel_options
from headrace.file_state import State
from headrace.tls import Tls

Security: TypeAlias = grpc.ChannelCredentials | Tls | None
# Between two looks at the files.
LOOK_SECONDS = 1.0


@dataclass(slots=True)
class Line:
    """A channel, its stubs, and how many calls run on it."""

    channel: grpc.aio.Channel
    stubs: dict[Callable[[grpc.aio.Channel], Any], Any] = field(default_factory=dict)
    calls: int = 0
    retired_at: float = 0.0


class Opening:
    """How one service is connected to."""

    def __init__(self, address: str, security: Security) -> None:
        """Raises ValueError for files that cannot be used."""
        self._address = address
        self._tls = security if isinstance(security, Tls) else None
        self._credentials = None if isinstance(security, Tls) else security
        self._state: State = ()
        self._looked = time.monotonic()
        if self._tls is not None:
            self._read(self._tls)

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS, or whatever the given credentials are, is used."""
        return self._credentials is not None

    def line(self) -> Line:
        """A new channel, by the files as they were read last."""
        if self._credentials is None:
            return Line(grpc.aio.insecure_channel(self._address, options=channel_options()))
        return Line(grpc.aio.secure_channel(self._address, self._credentials, options=channel_options()))

    def has_changed(self) -> bool:
        """Whether a new channel would have other certificates. Looks at most once a second.

        Files that cannot be used are as good as none: the channel stays, and they are looked at again.
        """
        if self._tls is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        if self._tls.state() == self._state:
            return False
        try:
            self._read(self._tls)
        except ValueError:
            return False
        return True

    def _read(self, tls: Tls) -> None:
        self._state, pem = tls.read()
        self._credentials = grpc.ssl_channel_credentials(pem.authorities, pem.key, pem.certificate)
