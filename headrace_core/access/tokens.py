"""What a JSON Web Token says, once everything about it has been checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import jwt

from headrace_core.access.file import JwtSettings
from headrace_core.access.identity import Grant, Identity
from headrace_core.errors import Unauthenticated

MAX_SUBJECT = 256
MAX_GRANTS = 1000
# The longest moment that is kept: a token without an end in sight is looked at again.
_MAX_TIME = 2.0**40

FindKey = Callable[[str | None, str], Awaitable[jwt.PyJWK | None]]

# What is wrong, in words of ours: the library's may repeat parts of the token.
_SAID: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "it has expired"),
    (jwt.ImmatureSignatureError, "it is not valid yet"),
    (jwt.InvalidIssuedAtError, "it was issued in the future"),
    (jwt.InvalidAudienceError, "it is for another audience"),
    (jwt.InvalidIssuerError, "it is from another issuer"),
    (jwt.MissingRequiredClaimError, "a claim is missing: exp, iss, aud and the subject are needed"),
    (jwt.InvalidAlgorithmError, "its algorithm is not allowed"),
    (jwt.InvalidSignatureError, "its signature is not the issuer's"),
)


@dataclass(frozen=True, slots=True)
class Verified:
    """Who a token stands for, and until when (Unix time, leeway included)."""

    identity: Identity
    until: float


async def verify(token: str, settings: JwtSettings, find_key: FindKey) -> Verified:
    """Check signature, algorithm, issuer, audience and times, and read the grants.

    Raises:
        Unauthenticated: something is wrong with it; the message says what, and nothing of the token.
        KeysUnavailable: it cannot be checked now.
    """
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise refused("it is neither a token of this server nor a JSON Web Token") from None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in settings.algorithms:
        raise refused("its algorithm is not allowed")
    key = await find_key(key_id, algorithm)
    if key is None:
        raise refused("no key of the issuer has its key id")
    claims = _claims(token, settings, key, algorithm)
    return Verified(
        Identity(f"jwt:{_subject(claims, settings)}", _grants(claims.get(settings.grants_claim))),
        min(float(claims["exp"]), _MAX_TIME) + settings.leeway,
    )


def refused(why: str) -> Unauthenticated:
    """The error for a token; `why` never repeats any of it."""
    return Unauthenticated(f"the token is not accepted: {why}")


def _claims(token: str, settings: JwtSettings, key: jwt.PyJWK, algorithm: str) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway,
            options={"require": ["exp", "iss", "aud", settings.subject_claim]},
        )
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        said = next((said for kind, said in _SAID if isinstance(error, kind)), "it is malformed")
        raise refused(said) from None


def _subject(claims: dict[str, Any], settings: JwtSettings) -> str:
    subject = claims.get(settings.subject_claim)
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
        raise refused(f"its {settings.subject_claim} is no text of 1 to {MAX_SUBJECT} printable characters")
    return subject


def _grants(claim: Any) -> list[Grant]:
    """Those that are grants. Others are somebody else's, or of a later version: they give nothing."""
    found: list[Grant] = []
    for text in claim[:MAX_GRANTS] if isinstance(claim, list) else ():
        try:
            found.append(Grant.parse(text))
        except (ValueError, AttributeError):
            continue
    return found
