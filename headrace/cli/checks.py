"""What `headrace verify` checks: each check tries until it is content or its time is over, and says what to look at."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.cli.status import health_name, mode_name
from headrace.cli.watching import task_state
from headrace.errors import HeadraceError, TaskEndedError, UnavailableError, UnknownKindError
from headrace.handshakes import hint_of_https
from headrace.tls import Tls

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.config import ClientConfig

AGAIN_SECONDS = 0.5
# A submit repeats within this time; then its error is known, and it is repeated here.
SUBMIT_SECONDS = 1.5
# For one answer over HTTP; the service promises one within 2 s.
HTTP_SECONDS = 5.0
MOST_READ = 4 * 1024 * 1024
# What did not start until the check gave up needs not start any more.
EXPIRES_AFTER_SECONDS = 60.0
LABELS = {"headrace": "verify"}
DOCUMENT = """# The ferry

The ferry to the island leaves the north pier every morning at seven. It carries forty passengers and two cars.

In winter the sea is often too rough. The harbour master then cancels the crossing and hoists a red flag at the pier.

Tickets are sold on board. A return ticket costs nine crowns, and children under six travel free of charge.
"""
QUESTION = "How much does a return ticket cost?"
LOOK_AT_CONSUMERS = "see `headrace status` and the logs of the consumers"
LOOK_AT_INFERENCE = (
    "see `headrace status --inference` and the logs of the consumers; where there is to be no model: --without-analysis"
)

T = TypeVar("T")


class Trouble(Exception):
    """A check has failed; the text is a sentence: what, and what to look at."""


class NotWell(Exception):
    """An answer came, and is not good yet."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check that is content has seen. `problems` are what it puts up with."""

    detail: str
    problems: tuple[str, ...] = ()


async def check_echo(client: Client, deadline: float) -> Finding:
    """Submit an echo, watch it to its end, and compare its result. `deadline` is the loop's time. Raises Trouble."""
    payload = {"text": f"verify {uuid.uuid4()}", "number": 2**53 + 1}
    task, result = await _run_task(client, "echo", payload, deadline, LOOK_AT_CONSUMERS)
    if result != payload:
        raise Trouble(f"task {task} of kind echo returned {_short(result)} and not its payload {_short(payload)}")
    return Finding(f"task {task} was watched to COMPLETED and returned its payload")


async def check_analysis(client: Client, deadline: float) -> Finding:
    """Have a small document analysed, and look for a summary and an answer. As `check_echo`."""
    payload = {"document": DOCUMENT, "questions": [QUESTION]}
    task, result = await _run_task(client, "ai.analyze", payload, deadline, LOOK_AT_INFERENCE)
    if not isinstance(result, dict) or not result.get("summary"):
        raise Trouble(f"task {task} of kind ai.analyze has no summary: {_short(result)}; {LOOK_AT_INFERENCE}")
    answers = result.get("answers") or [{}]
    if not answers[0].get("answer"):
        raise Trouble(f"task {task} of kind ai.analyze has no answer: {_short(answers)}; {LOOK_AT_INFERENCE}")
    return Finding(f"task {task}: a summary and an answer by {result.get('backend')}, {result.get('model')}")


async def check_system(client: Client, deadline: float) -> Finding:
    """Ask the status service how the system is; degraded is good enough, its problems are shown. As `check_echo`."""

    async def look() -> Finding:
        system = await client.system_status()
        name, problems = health_name(system.health), tuple(system.problems)
        if name not in ("HEALTHY", "DEGRADED"):
            raise NotWell(f"the system is {name}: {'; '.join(problems) or 'no problem is named'}")
        counts = f"consumers: {len(system.consumers)}, queues: {len(system.queues)}"
        return Finding(f"{name.lower()}, mode {mode_name(system.mode).lower()}, {counts}", problems)

    return await _until_content(look, deadline, "see the logs of the status service")


async def check_http(url: str, deadline: float, config: ClientConfig) -> Finding:
    """Read /api/async-status at `url`, as the client that has `config`; degraded is good enough. As `check_echo`."""
    address = url.rstrip("/") + "/api/async-status"

    async def look() -> Finding:
        code, text = await asyncio.to_thread(_get, address, config)
        try:
            answer = json.loads(text)
            status, mode = answer["status"], answer["mode"]
            counts = f"consumers: {len(answer['consumers'])}, queues: {len(answer['queues'])}"
        except (ValueError, KeyError, TypeError) as error:
            raise NotWell(f"{address} answered {code} and no status of Headrace: {_short(text)}") from error
        problems = tuple(str(problem) for problem in answer.get("problems") or ())
        if status not in ("healthy", "degraded"):
            raise NotWell(f"{address} answered {code}, {status}: {'; '.join(problems)}")
        return Finding(f"{address}: {code}, {status}, mode {mode}, {counts}", problems)

    return await _until_content(look, deadline, "see the logs of the status service, its Service and its port")


def _get(address: str, config: ClientConfig) -> tuple[int, str]:
    """Status and body; 503 has one too. Raises NotWell."""
    request = urllib.request.Request(address)  # noqa: S310 - http(s), checked before
    if config.bearer is not None:
        # Not for whomever a redirection leads to.
        request.add_unredirected_header("Authorization", config.bearer.header())
    try:
        context = (config.tls or Tls()).context() if address.startswith("https://") else None
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS, context=context) as answer:  # noqa: S310
            return answer.status, answer.read(MOST_READ).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(MOST_READ).decode(errors="replace")
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NotWell(f"{address} cannot be read: {reason}{_advice(str(reason))}") from error


def _advice(reason: str) -> str:
    advice = hint_of_https(reason)
    return f" ({advice})" if advice else ""


async def _run_task(client: Client, kind: str, payload: Any, deadline: float, hint: str) -> tuple[str, Any]:
    """Submit, watch to the end, read the result: the id and the result. Raises Trouble."""
    left = deadline - asyncio.get_running_loop().time()
    key = f"headrace-verify-{uuid.uuid4()}"
    # Once for all repeats: the same key with another deadline would be another request.
    expires = datetime.now(UTC) + timedelta(seconds=left + EXPIRES_AFTER_SECONDS)
    task = await _until_content(
        lambda: client.submit(
            kind, payload, idempotency_key=key, labels=LABELS, deadline=expires, timeout=SUBMIT_SECONDS
        ),
        deadline,
        hint,
    )
    seen = f"task {task.id} of kind {kind} was accepted, and no event of it was seen"
    try:
        async with asyncio.timeout_at(deadline):
            async with aclosing(client.watch(task.id)) as events:
                async for event in events:
                    if state := task_state(event):
                        seen = f"task {task.id} of kind {kind} was {state} at last"
            return task.id, await client.result(task.id)
    except TimeoutError as error:
        raise Trouble(f"{seen} after {left:.0f} s; {hint}") from error
    except TaskEndedError as error:
        raise Trouble(f"{error.message}; see `headrace get {error.task.id}`; {hint}") from error
    except HeadraceError as error:
        raise Trouble(f"{error.message}; {hint}") from error


async def _until_content(look: Callable[[], Awaitable[T]], deadline: float, hint: str) -> T:
    """What `look` returns, called again while a service is still starting. Raises Trouble when the time is over."""
    clock = asyncio.get_running_loop().time
    said = "there was no answer in time"
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                return await look()
        except TimeoutError:
            raise Trouble(f"{said}; {hint}") from None
        except (NotWell, UnavailableError, UnknownKindError) as error:
            said = error.message if isinstance(error, HeadraceError) else str(error)
        except HeadraceError as error:
            raise Trouble(f"{error.message}; {hint}") from error
        if clock() + AGAIN_SECONDS > deadline:
            raise Trouble(f"{said}; {hint}")
        await asyncio.sleep(AGAIN_SECONDS)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
