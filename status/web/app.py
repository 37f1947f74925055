"""The HTTP side: the two JSON answers for people, probes and scripts that speak no gRPC. See docs/http-api.md."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from headrace.v1 import queue_pb2, status_pb2
from headrace_core.access.gate import Gate
from status.health import HEALTHY, word
from status.system import System
from status.web.guard import Guarded

_NO_STORE = {"cache-control": "no-store"}


def web_app(system: System, routes: tuple[BaseRoute, ...] = (), gate: Gate | None = None) -> Starlette:
    """The application; `routes` are served besides. `gate`: who may ask; None: everybody."""

    async def async_status(_request: Request) -> Response:
        found = await system.status()
        return _answer(system_json(found), well=found.health == HEALTHY)

    async def ai_status(_request: Request) -> Response:
        found = await system.inference()
        return _answer(inference_json(found), well=found.health == HEALTHY)

    async def front(_request: Request) -> Response:
        return RedirectResponse("/api/async-status", headers=_NO_STORE)

    return Starlette(
        routes=[
            Route("/", front),
            Route("/api/async-status", async_status),
            Route("/api/ai-status", ai_status),
            *routes,
        ],
        middleware=[Middleware(Guarded, gate=gate)] if gate is not None else [],
    )


def system_json(found: status_pb2.SystemStatus) -> dict[str, Any]:
    """What /api/async-status says."""
    answer: dict[str, Any] = {
        "status": word(found.health),
        "service": found.service,
        "architecture": found.architecture,
        "mode": status_pb2.DispatchMode.Name(found.mode).removeprefix("DISPATCH_MODE_").lower(),
        "queueCheck": {
            "hasTaskStream": found.has_task_stream,
            "hasDeadLetterStream": found.has_dead_letter_stream,
            "hasFallback": found.has_fallback,
        },
        "queues": {queue.name: _queue_json(queue) for queue in found.queues},
        "consumers": [_consumer_json(consumer) for consumer in found.consumers],
        "time": found.time.ToJsonString(),
    }
    if found.problems:
        answer["problems"] = list(found.problems)
    return answer


def inference_json(found: status_pb2.InferenceStatus) -> dict[str, Any]:
    """What /api/ai-status says."""
    return {
        "status": word(found.health),
        "service": "ai.analyze",
        "backend": found.backend,
        "model": found.model,
        "models": list(found.models),
        "lastError": found.last_error or None,
        "latencyMs": round(found.latency.ToTimedelta().total_seconds() * 1000, 3)
        if found.HasField("latency")
        else None,
        "checkedAt": found.check_time.ToJsonString() if found.HasField("check_time") else None,
    }


def _queue_json(queue: queue_pb2.Queue) -> dict[str, Any]:
    return {
        "backlog": queue.backlog,
        "delayed": queue.delayed,
        "inFlight": queue.in_flight,
        "deadLetters": queue.dead_letters,
        "oldestAgeSeconds": queue.oldest_age.ToTimedelta().total_seconds(),
        "submitRate": queue.submit_rate,
        "finishRate": queue.finish_rate,
        "paused": queue.paused,
    }


def _consumer_json(consumer: status_pb2.ConsumerStatus) -> dict[str, Any]:
    return {
        "worker": consumer.worker,
        "kinds": list(consumer.kinds),
        "queues": list(consumer.queues),
        "startedAt": consumer.start_time.ToJsonString(),
        "draining": consumer.draining,
        "running": consumer.running,
    }


def _answer(content: dict[str, Any], *, well: bool) -> Response:
    return JSONResponse(content, status_code=200 if well else 503, headers=_NO_STORE)
