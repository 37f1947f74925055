"""Who calls: what the transport knows about the other end of a connection."""

from typing import Any

# The names that an authority vouches for, in this order: the alternative ones, then the common name.
NAMES = ("x509_subject_alternative_name", "x509_common_name")


def certificate_names(context: Any) -> list[str]:
    """The names in a call's verified client certificate: alternative ones (DNS, URI, address), then the common name.

    Empty without TLS, and where no client certificate is required: one that nobody verified is never asked for.
    `context`: the call's ServicerContext. Each name stands once; a common name that is an alternative name as well too.
    """
    found = context.auth_context()
    names = [_text(name) for kind in NAMES for name in found.get(kind, ())]
    return [name for name in dict.fromkeys(names) if name]


def _text(name: bytes) -> str:
    # Whatever an authority signs is data: bytes that are no UTF-8 must not break a call, nor match a name that is.
    return name.decode("utf-8", errors="backslashreplace")
