"""What gRPC says when a connection cannot be secured, and which variable to look at then."""

from __future__ import annotations

from headrace.tls import CA_FILE, CERT_FILE, SWITCH

# Parts of gRPC's texts, the more telling ones first: a text may have several.
UNKNOWN_AUTHORITY = (
    f"the server's certificate is of an authority that is not believed: {CA_FILE} must hold the one that signed it"
)
WRONG_NAME = "the server's certificate is for another name: connect by a name that stands in it, or add this one to it"
HINTS = (
    ("certificate has expired", "the server's certificate has ended: it must be renewed there"),
    ("certificate is not yet valid", "the server's certificate is not valid yet: compare the clocks"),
    ("CERTIFICATE_VERIFY_FAILED", UNKNOWN_AUTHORITY),
    ("ostname Verification Check failed", WRONG_NAME),
    ("WRONG_VERSION_NUMBER", f"the server speaks no TLS there: unset {SWITCH} and {CA_FILE}, or switch its TLS on"),
)
# All that a client sees where the server hangs up: on a certificate that it does not take, on one who brings none.
HUNG_UP = ("Socket closed", "Connection reset", "Broken pipe", "CERTIFICATE_REQUIRED", "UNKNOWN_CA", "EXPIRED")
COULD_NOT_CONNECT = ("failed to connect", "connections to all backends failing", "handshake failed")


def hint(details: str, *, encrypted: bool) -> str:
    """One sentence about gRPC's text of a failed call; empty if it is about nothing of this kind."""
    for part, sentence in HINTS:
        if part in details:
            return sentence
    if not _has(details, HUNG_UP) or not _has(details, COULD_NOT_CONNECT):
        return ""
    if encrypted:
        return f"the server hangs up: it may require a client certificate, or does not take this one ({CERT_FILE})"
    return f"the server hangs up: it may speak TLS only ({SWITCH}, {CA_FILE})"


def hint_of_https(reason: str) -> str:
    """As `hint`, about the text of Python's ssl."""
    if "CERTIFICATE_REQUIRED" in reason or "CERTIFICATE_UNKNOWN" in reason or "UNKNOWN_CA" in reason:
        return f"the server requires a client certificate, or does not take this one: {CERT_FILE}"
    if "Hostname mismatch" in reason or "IP address mismatch" in reason:
        return WRONG_NAME
    return hint(reason, encrypted=True)


def _has(details: str, parts: tuple[str, ...]) -> bool:
    return any(part in details for part in parts)
