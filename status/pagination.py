"""Page tokens: opaque to clients, valid only for the method and the filter that they were given for.

A token names the last task of its page, not an offset: tasks that arrive between two pages shift nothing.
"""

import base64
import binascii
import hashlib
from uuid import UUID

from headrace_core.errors import InvalidFields, PageTokenInvalid, Violation

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1_000

_VERSION = b"\x01"
_DIGEST_BYTES = 12
_TOKEN_BYTES = 1 + 16 + _DIGEST_BYTES
_MAX_TEXT = 64  # longer ones are not ours; they are refused before they are decoded


def page_size(asked: int) -> int:
    """The page size for a request's `page_size`: 0 means 50.

    Raises:
        InvalidFields: it is negative or above 1,000.
    """
    if 0 <= asked <= MAX_PAGE_SIZE:
        return asked or DEFAULT_PAGE_SIZE
    raise InvalidFields.of(
        [Violation("page_size", f"1 to {MAX_PAGE_SIZE:,}, or 0 for {DEFAULT_PAGE_SIZE}; not {asked}")]
    )


def encode(method: str, query: bytes, last: UUID) -> str:
    """The token for the page after the task `last`; `query` is the canonical form of the filter."""
    raw = _VERSION + last.bytes + _digest(method, query, last.bytes)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(method: str, query: bytes, token: str) -> UUID:
    """The task that the token's page begins after.

    Raises:
        PageTokenInvalid: it is damaged, of another version, or was given for another method or filter.
    """
    raw = _raw(token)
    position = raw[1:17]
    if raw[:1] != _VERSION or len(raw) != _TOKEN_BYTES or raw[17:] != _digest(method, query, position):
        raise _invalid()
    return UUID(bytes=position)


def _raw(token: str) -> bytes:
    if len(token) > _MAX_TEXT:
        raise _invalid()
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid() from None


def _digest(method: str, query: bytes, position: bytes) -> bytes:
    """No secret: a token grants nothing. This finds mistakes, such as a changed filter."""
    return hashlib.sha256(b"\0".join((method.encode(), position, query))).digest()[:_DIGEST_BYTES]


def _invalid() -> PageTokenInvalid:
    return PageTokenInvalid(
        "the page token was not given by this method for this filter; "
        "use next_page_token of the previous page unchanged, with the same filter, or begin without a token"
    )
