"""What can go wrong on the bus, in words of our own.

nats-py's error classes have empty `args`, and reading `err_code` of some raises AttributeError; so they are
translated here, once, and the JetStream API's answers are told apart by their error codes, never by their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nats import errors as nats_errors

STREAM_FULL = 10077
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
MESSAGE_NOT_FOUND = 10037
# Not enabled on the server, not enabled for the account.
NO_JETSTREAM = frozenset({10039, 10076})
NO_QUORUM = 10008  # a cluster without its majority, or a server that is stopping

# Everything that nats-py, its transport and asyncio raise for a connection that is not there or does not answer.
CLIENT_ERRORS = (nats_errors.Error, OSError, TimeoutError, RuntimeError, AttributeError, AssertionError)


class BusError(Exception):
    """Something on the bus failed. `message` is one sentence: what, where, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BusUnavailable(BusError):
    """NATS cannot be reached or did not answer in time. Whether a publish or request took effect is unknown."""


class JetStreamMissing(BusError):
    """NATS is there, but JetStream is not: not enabled on the server, or not for this account."""


class AccessUnusable(BusUnavailable):
    """A file with which we would show who we are, or know the server by, is not fit for that."""


class Denied(BusUnavailable):
    """NATS does not let this user do it. Nothing was done; an operator has to allow it."""


class NoQuorum(BusUnavailable):
    """NATS is there, but its JetStream has lost the majority of its servers. It comes back with them."""


class StreamFull(BusError):
    """The stream, or one subject of it, has reached its limit. A pause, not a defect."""


class StreamMissing(BusError):
    """The stream does not exist; `headrace topology apply` creates it."""


class DurableMissing(BusError):
    """The durable consumer does not exist; `headrace topology apply` creates it."""


class RequestRefused(BusError):
    """JetStream refused a request for another reason: its HTTP-like `code` and its `err_code` say which."""

    def __init__(self, message: str, code: int, err_code: int) -> None:
        super().__init__(message)
        self.code = code
        self.err_code = err_code


class TopologyError(BusError):
    """What is declared cannot be made: the message says what stands in the way and what to do."""


class ClusterTooSmall(TopologyError):
    """The cluster has not enough servers for the copies that are asked for: not now, perhaps in a moment."""


def from_answer(subject: str, error: Mapping[str, Any]) -> BusError:
    """Return the error that a JetStream API answer's `error` object means. `subject`: what was asked."""
    code, err_code = int(error.get("code", 0)), int(error.get("err_code", 0))
    detail = f"{subject}: {error.get('description', 'no description')} (code {code}, err_code {err_code})"
    if err_code == STREAM_FULL:
        return StreamFull(detail)
    if err_code == STREAM_NOT_FOUND:
        return StreamMissing(f"{detail}; run: headrace topology apply")
    if err_code == CONSUMER_NOT_FOUND:
        return DurableMissing(f"{detail}; run: headrace topology apply")
    if err_code == NO_QUORUM:
        return NoQuorum(f"{detail}; the cluster has lost its majority: bring its servers back")
    if err_code in NO_JETSTREAM:
        return JetStreamMissing(f"{detail}; enable JetStream for the server and this account")
    return RequestRefused(detail, code, err_code)


def from_client(doing: str, error: Exception) -> BusError:
    """Return what an error of nats-py, of the socket or of a limit on time means. `doing`: what was tried."""
    if isinstance(error, nats_errors.NoRespondersError):
        return JetStreamMissing(f"{doing}: nobody answers; start nats-server with --jetstream")
    reason = str(error) or type(error).__name__
    if isinstance(error, (nats_errors.MaxPayloadError, nats_errors.BadSubjectError)) or _is_bad_header(error):
        return RequestRefused(f"{doing}: {reason}", 400, 0)
    return BusUnavailable(f"{doing}: {reason}")


def _is_bad_header(error: Exception) -> bool:
    return type(error).__name__ == "BadHeaderError"  # new in nats-py 2.12; the floor is 2.11
