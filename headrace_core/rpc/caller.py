"""The caller of a method: a value that travels with its context."""

from __future__ import annotations

from typing import Any

from headrace_core.access.authenticator import Credentials, credentials_of
from headrace_core.access.identity import ANYONE, Identity
from headrace_core.rpc.peer import certificate_names

AUTHORIZATION = "authorization"


class Call:
    """A context of grpc.aio, and who calls. Everything else is the context's."""

    __slots__ = ("_context", "credentials", "identity")

    def __init__(self, context: Any, credentials: Credentials, identity: Identity) -> None:
        self._context = context
        self.credentials = credentials
        self.identity = identity

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def read_credentials(context: Any) -> Credentials:
    """What the call brings. Raises Unauthenticated for what is no bearer token."""
    values = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION]
    return credentials_of(values, () if values else certificate_names(context))


def identity_of(context: Any) -> Identity:
    """Who calls; ANYONE where there is no authentication."""
    return context.identity if type(context) is Call else ANYONE
