"""Ports that strangers could read along on: one warning at the start, or a refusal where security is required."""

from ipaddress import ip_address

from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.telemetry import logs

log = logs.get(__name__)


def check_exposure(service: str, settings: ServiceSettings) -> None:
    """Say which of the service's ports is open to other machines without TLS; the ops port is plain by design.

    Raises SettingsError for one with HEADRACE_REQUIRE_AUTH.
    """
    exposed = _exposed(service, settings)
    if settings.tls_cert_file is not None or not exposed:
        return
    where = " and ".join(exposed)
    if settings.require_auth:
        raise SettingsError(
            f"HEADRACE_REQUIRE_AUTH = true and no TLS on {where}: set HEADRACE_TLS_CERT_FILE and "
            "HEADRACE_TLS_KEY_FILE, or listen on 127.0.0.1 only"
        )
    log.warning(
        f"no TLS: whoever is on the network can read what goes to {where}",
        action="tls.off",
        listen=exposed,
    )


def _exposed(service: str, settings: ServiceSettings) -> list[str]:
    ports = [settings.listen, *([settings.http_listen] if service == "status" else [])]
    return [port for port in ports if not is_loopback(port)]


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach `listen`, host:port."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
