"""Who calls over HTTPS: the names in the client's certificate, for every request of its connection."""

import asyncio
from collections.abc import Mapping
from typing import Any

from headrace_core.runtime.http_bounds import BoundedHttp

# Others, such as directory names, are no text.
KINDS = frozenset({"DNS", "URI", "IP Address", "email"})


class NamingProtocol(BoundedHttp):
    """HTTP whose requests have `certificate_names` in their state; empty where no certificate was required."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the certificate once; the handshake is over."""
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        found = connection.getpeercert() if connection is not None else None
        self.app_state = {**self.app_state, "certificate_names": names_in(found or {})}


def names_in(certificate: Mapping[str, Any]) -> list[str]:
    """The names in a certificate as Python's ssl decodes it, as `rpc.peer.certificate_names` orders them."""
    alternative = [value for kind, value in certificate.get("subjectAltName", ()) if kind in KINDS]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return list(dict.fromkeys([*alternative, *common]))
