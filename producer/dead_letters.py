"""DeadLetterService on the wire: messages in, messages out; what is allowed in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from headrace import json_text
from headrace.v1 import dead_letter_pb2 as pb
from headrace.v1 import dead_letter_pb2_grpc, error_pb2, task_pb2
from headrace_core.access.identity import Identity, Roles
from headrace_core.access.table import OPERATORS, READERS
from headrace_core.db.pool import Database
from headrace_core.errors import InvalidFields, Violation
from headrace_core.rpc.caller import identity_of
from headrace_core.rpc.convert import attempt_message, error_message, reason_number, task_message, timestamp
from headrace_core.tasks import dead_letters
from headrace_core.tasks.audit import recorded
from headrace_core.tasks.dead_letters import DeadLetter, Filter
from producer import page_tokens
from producer.arguments import answered_within, future_time, is_uuid
from producer.auditing import action_of
from producer.redrive import Redrive
from producer.validation import moment, timestamp_violation

MAX_IDS = 1000
MAX_TASKS = 1000
MAX_PAGE = 1000
DEFAULT_PAGE = 50
LEAST_RATE = 0.01

Context = grpc.aio.ServicerContext[Any, Any]
# "<task id>-<generation>", or "<stream creation time>-<stream sequence>".
_LETTER_ID = re.compile(r"[0-9][0-9a-zA-Z:+_-]{0,126}-[0-9]{1,20}|[0-9a-fA-F-]{36}-[0-9]{1,10}")
_METHOD = "ListDeadLetters"


class DeadLetterServicer(dead_letter_pb2_grpc.DeadLetterServiceServicer):
    """Lists, shows, redrives and discards."""

    def __init__(self, db: Database, redrive: Redrive) -> None:
        self._db = db
        self._redrive = redrive

    async def ListDeadLetters(  # noqa: D102, N802 - described in the proto
        self, request: pb.ListDeadLettersRequest, context: Context
    ) -> pb.ListDeadLettersResponse:
        _refuse([*_filter_violations(request.filter), *_page_violations(request)])
        after = page_tokens.decode(request.page_token, _METHOD, request.filter)
        size = request.page_size or DEFAULT_PAGE
        async with answered_within(context):
            letters = await dead_letters.list_letters(
                self._db, _filter(request.filter, identity_of(context), READERS), size + 1, after
            )
        response = pb.ListDeadLettersResponse(dead_letters=[_message(letter) for letter in letters[:size]])
        if len(letters) > size:
            last = letters[size - 1]
            response.next_page_token = page_tokens.encode(_METHOD, request.filter, last.created_at, last.id)
        return response

    async def GetDeadLetter(  # noqa: D102, N802
        self, request: pb.GetDeadLetterRequest, context: Context
    ) -> pb.GetDeadLetterResponse:
        _refuse(_id_violations("id", [request.id]))
        async with answered_within(context):
            (letter,) = await self._redrive.find([request.id], identity_of(context))
            content, attempts = await dead_letters.read_content(self._db, letter)
        message = _message(letter)
        message.payload_json = content
        message.attempts.extend(attempt_message(attempt) for attempt in attempts)
        return pb.GetDeadLetterResponse(dead_letter=message)

    async def RedriveDeadLetters(  # noqa: D102, N802
        self, request: pb.RedriveDeadLettersRequest, context: Context
    ) -> pb.RedriveDeadLettersResponse:
        _refuse([*_choice_violations(request), *_redrive_violations(request)])
        deadline = future_time("deadline", request.deadline) if request.HasField("deadline") else None
        payload = request.payload_json if request.HasField("payload_json") else None
        action = action_of("redrive", request, context)
        async with answered_within(context), recorded(self._db, action):
            chosen = await self._choose(request, identity_of(context))
            done = await self._redrive.redrive(
                chosen,
                rate=request.rate,
                deadline=deadline,
                payload=payload,
                dry_run=request.dry_run,
                strict=bool(request.ids),
                action=action,
            )
        return pb.RedriveDeadLettersResponse(
            matched=len(chosen),
            redriven=len(done.tasks),
            skipped=done.skipped,
            tasks=[task_message(task) for task in done.tasks[:MAX_TASKS]],
        )

    async def DiscardDeadLetters(  # noqa: D102, N802
        self, request: pb.DiscardDeadLettersRequest, context: Context
    ) -> pb.DiscardDeadLettersResponse:
        _refuse(_choice_violations(request))
        action = action_of("discard", request, context)
        async with answered_within(context), recorded(self._db, action):
            chosen = await self._choose(request, identity_of(context))
            discarded = 0 if request.dry_run else await self._redrive.discard(chosen, action)
        return pb.DiscardDeadLettersResponse(matched=len(chosen), discarded=discarded)

    async def _choose(
        self, request: pb.RedriveDeadLettersRequest | pb.DiscardDeadLettersRequest, identity: Identity
    ) -> list[dead_letters.Chosen]:
        if request.ids:
            return await self._redrive.open_of(request.ids, identity)
        return await self._redrive.matching(_filter(request.filter, identity, OPERATORS))


def _refuse(violations: Iterator[Violation] | Sequence[Violation]) -> None:
    if found := list(violations):
        raise InvalidFields.of(found)


def _choice_violations(
    request: pb.RedriveDeadLettersRequest | pb.DiscardDeadLettersRequest,
) -> Iterator[Violation]:
    if bool(request.ids) == request.HasField("filter"):
        yield Violation("ids", "give either ids or a filter (an empty filter matches every open dead letter)")
    if len(request.ids) > MAX_IDS:
        yield Violation("ids", f"there are {len(request.ids)}; at most {MAX_IDS} are allowed")
    yield from _id_violations("ids", request.ids[:MAX_IDS])
    yield from _filter_violations(request.filter)


def _redrive_violations(request: pb.RedriveDeadLettersRequest) -> Iterator[Violation]:
    if not math.isfinite(request.rate) or (request.rate != 0 and request.rate < LEAST_RATE):
        yield Violation("rate", f"{request.rate:g} is neither 0 (all at once) nor at least {LEAST_RATE} a second")
    if request.HasField("deadline") and (found := timestamp_violation("deadline", request.deadline)):
        yield found
    if not request.HasField("payload_json"):
        return
    if len(request.ids) != 1:
        yield Violation("payload_json", "a new payload goes with exactly one id")
    for complaint in json_text.violations(request.payload_json, require_object=True, what="the payload"):
        yield Violation("payload_json", complaint)


def _id_violations(field: str, ids: Sequence[str]) -> Iterator[Violation]:
    for index, text in enumerate(ids):
        if not is_uuid(text) and not _LETTER_ID.fullmatch(text):
            path = f"{field}[{index}]" if field == "ids" else field
            yield Violation(path, f"{json.dumps(text[:80])} is neither a dead letter's id nor a task's (a UUID)")


def _filter_violations(wanted: pb.DeadLetterFilter) -> Iterator[Violation]:
    for field in ("namespace", "queue", "kind"):
        if "\0" in getattr(wanted, field):
            yield Violation(f"filter.{field}", "it contains the character NUL")
    if wanted.reason not in error_pb2.Reason.values():
        yield Violation("filter.reason", f"{wanted.reason} is no Reason")
    if wanted.HasField("failed_before"):
        found = timestamp_violation("filter.failed_before", wanted.failed_before)
        yield from [found] if found else []


def _page_violations(request: pb.ListDeadLettersRequest) -> Iterator[Violation]:
    if not 0 <= request.page_size <= MAX_PAGE:
        yield Violation("page_size", f"{request.page_size} is not within 1 to {MAX_PAGE} (0: {DEFAULT_PAGE})")


def _filter(wanted: pb.DeadLetterFilter, identity: Identity, roles: Roles) -> Filter:
    """For what somebody with these roles may reach. Raises PermissionDenied for a namespace of the caller's own."""
    if wanted.namespace and identity.knows(wanted.namespace):
        identity.require(roles, wanted.namespace)
    reason = error_pb2.Reason.Name(wanted.reason).removeprefix("REASON_") if wanted.reason else None
    return Filter(
        namespace=wanted.namespace or None,
        queue=wanted.queue or None,
        kind=wanted.kind or None,
        reason=reason,
        failed_before=moment(wanted.failed_before) if wanted.HasField("failed_before") else None,
        include_resolved=wanted.include_resolved,
        within=identity.reach(roles),
    )


def _message(letter: DeadLetter) -> pb.DeadLetter:
    budgets = json.loads(letter.budgets)
    return pb.DeadLetter(
        id=letter.id,
        task_id=str(letter.task_id or ""),
        generation=letter.generation,
        namespace=letter.namespace,
        queue=letter.queue,
        kind=letter.kind,
        reason=reason_number(letter.reason),
        error=error_message(letter.error),
        create_time=timestamp(letter.created_at),
        publish_time=timestamp(letter.published_at),
        resolve_time=timestamp(letter.resolved_at),
        resolution=_resolution(letter.resolution),
        budgets=task_pb2.Budgets(
            failures=budgets.get("failures", 0),
            max_attempts=budgets.get("maxAttempts", 0),
            crashes=budgets.get("crashes", 0),
            max_crashes=budgets.get("maxCrashes", 0),
            interruptions=budgets.get("interruptions", 0),
        ),
    )


def _resolution(name: str) -> pb.DeadLetterResolution.ValueType:
    return pb.DeadLetterResolution.Value(f"DEAD_LETTER_RESOLUTION_{name or 'UNSPECIFIED'}")
