"""The operator's port: /livez, /readyz, /metrics. Not for clients, not for the internet."""

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from headrace_core.telemetry import metrics


def ops_app(problems: Callable[[], list[str]]) -> Starlette:
    """The application. `problems` returns what keeps the service from working, one sentence each; empty: ready."""

    async def livez(_request: Request) -> Response:
        # Local only: that this answers proves that the loop turns. An outage of Postgres or NATS must not restart pods.
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        found = problems()
        return JSONResponse({"ready": not found, "problems": found}, status_code=503 if found else 200)

    async def exposition(_request: Request) -> Response:
        metrics.ready.set(not problems())
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)

    return Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", exposition)],
    )
