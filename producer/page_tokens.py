"""Page tokens: where a page ended, for which filter. One from elsewhere is refused, never guessed at."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import UTC, datetime

from google.protobuf.message import Message

from headrace_core.errors import PageTokenInvalid

MAX_TOKEN = 1024


def encode(method: str, wanted: Message, created_at: datetime, last_id: str) -> str:
    """The token of the page behind the entry (`created_at`, `last_id`) of `method` for the filter `wanted`."""
    place = [_digest(method, wanted), created_at.isoformat(), last_id]
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def decode(token: str, method: str, wanted: Message) -> tuple[datetime, str] | None:
    """Where the page begins; None for the first page. Raises PageTokenInvalid."""
    if not token:
        return None
    try:
        digest, created_at, last_id = json.loads(base64.urlsafe_b64decode(token[:MAX_TOKEN].encode()))
        moment, last = datetime.fromisoformat(created_at), str(last_id)
        # The digest is no secret, so the place beside it may be anything: a time before the year 1 once in UTC, or half
        # a surrogate pair, which no statement can carry.
        place = moment.astimezone(UTC), last
    except (binascii.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _invalid() from error
    if digest != _digest(method, wanted) or moment.tzinfo is None or not last.isascii() or "\0" in last:
        raise _invalid()
    return place


def _digest(method: str, wanted: Message) -> str:
    """Within one version of the software: a token does not outlive a walk through the pages."""
    sent = wanted.SerializeToString(deterministic=True)
    return hashlib.sha256(method.encode() + b"\0" + sent).hexdigest()[:16]


def _invalid() -> PageTokenInvalid:
    return PageTokenInvalid(
        "the page token is not one that this method gave for this filter; begin with the first page"
    )
