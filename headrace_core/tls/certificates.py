"""A server's certificate over its life: every handshake looks at the files, so a rotated one needs no restart.

Open connections keep what they were opened with. A new file that cannot be used is told once; the old one stays.
"""

from __future__ import annotations

import ssl
import threading
from typing import Any

import grpc

from headrace.file_state import State, state_of
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs
from headrace_core.tls.material import Material, TlsFiles, read

# Rotations happen weeks before the end. Who has not rotated by then has forgotten it.
SOON_DAYS = 14

log = logs.get(__name__)


class Certificates:
    """What a service's ports show. Its methods may be called on any thread: gRPC shakes hands on its own ones."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises SettingsError for files that cannot be used."""
        self._files = files
        self._lock = threading.Lock()
        self._state, self._material = read(files)
        self._told_days: int | None = None
        self._tell_if_it_ends_soon()

    @classmethod
    def of(cls, settings: ServiceSettings) -> Certificates | None:
        """As the environment names them; None: no TLS. Raises SettingsError."""
        files = TlsFiles.of(settings)
        return None if files is None else cls(files)

    def current(self) -> Material:
        """What a handshake that begins now has to use. Three looks at the file system unless something has changed."""
        with self._lock:
            state = state_of(self._files.paths)
            if state != self._state:
                self._take(state)
            self._tell_if_it_ends_soon()
            return self._material

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a secure port of gRPC, which asks again for each new connection."""
        given = self._material

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            found = self.current()
            if found is given:
                return None
            given = found
            return _configuration(found)

        required = self._files.client_authorities is not None
        # The stub forgets that None means "as before".
        fetch: Any = changed
        return grpc.dynamic_ssl_server_credentials(_configuration(given), fetch, required)

    def http_context(self) -> ssl.SSLContext:
        """For an HTTPS server: each handshake goes on with the current context, whichever name the client asks for."""
        _state, front = read(self._files)

        def choose(connection: Any, _name: str | None, _front: ssl.SSLContext) -> None:
            connection.context = self.current().context

        front.context.sni_callback = choose
        return front.context

    def _take(self, state: State) -> None:
        # Noted first: files that cannot be used are not read again before they change.
        self._state = state
        try:
            self._state, self._material = read(self._files)
        except SettingsError as error:
            log.error(
                "the new TLS files cannot be used; the old certificate stays",
                action="tls.unusable",
                error=error.message,
            )
        else:
            log.info("new TLS files are in use", action="tls.rotated", expires=self._material.expires.isoformat())

    def _tell_if_it_ends_soon(self) -> None:
        """Once for each day less."""
        days = self._material.days_left
        if days < SOON_DAYS and days != self._told_days:
            self._told_days = days
            log.warning(
                "the TLS certificate ends soon",
                action="tls.ending",
                file=str(self._files.certificate),
                days=days,
                expires=self._material.expires.isoformat(),
            )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    pair = (material.key, material.certificate)
    return grpc.ssl_server_certificate_configuration([pair], material.client_authorities)
