"""The gate in front of the HTTP side: the same identities and the same table as over gRPC."""

from __future__ import annotations

from grpc import StatusCode
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace_core.access.authenticator import credentials_of
from headrace_core.access.gate import Gate
from headrace_core.errors import DomainError

_HTTP = {StatusCode.UNAUTHENTICATED: 401, StatusCode.PERMISSION_DENIED: 403}


class Guarded:
    """Asks for an identity before anything is answered; a path without a row in the table is denied."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        try:
            tokens = Headers(scope=scope).getlist("authorization")
            # As over gRPC: a token decides alone.
            names = () if tokens else scope.get("state", {}).get("certificate_names", ())
            credentials = credentials_of(tokens, names)
            await self._gate.admit(f"{method} {scope['path']}", None, credentials)
        except DomainError as error:
            await _refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _refusal(error: DomainError) -> JSONResponse:
    code = _HTTP.get(error.code, 503)
    headers = {"cache-control": "no-store"} | ({"www-authenticate": "Bearer"} if code == 401 else {})
    return JSONResponse({"error": {"reason": error.reason, "message": error.message}}, code, headers)
