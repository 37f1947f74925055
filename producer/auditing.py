"""From a call to the record of it: who asked for what. Only what steers: a submit is no operator's action."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from headrace.v1 import dead_letter_pb2
from headrace_core.access.identity import Identity
from headrace_core.access.table import OPERATORS
from headrace_core.db.pool import Database
from headrace_core.errors import DatabaseUnavailable, PermissionDenied
from headrace_core.rpc.caller import identity_of
from headrace_core.tasks.audit import Action
from headrace_core.telemetry import logs

# A record names so many ids; how many there were it says as well.
MAX_IDS = 50
ACTIONS: Mapping[str, str] = {
    "headrace.v1.QueueService/PauseQueue": "pause",
    "headrace.v1.QueueService/ResumeQueue": "resume",
    "headrace.v1.QueueService/PurgeQueue": "purge",
    "headrace.v1.DeadLetterService/RedriveDeadLetters": "redrive",
    "headrace.v1.DeadLetterService/DiscardDeadLetters": "discard",
    "headrace.v1.ProducerService/CancelTask": "cancel",
}

_log = logs.get("headrace.producer.auditing")


def action_of(name: str, request: Any, context: Any) -> Action | None:
    """The record of this call; None for what is none: a dry run, and a cancellation by a caller who operates nothing.

    A client that takes its own task back is everyday life, and stands in the task's events.
    """
    identity = identity_of(context)
    if getattr(request, "dry_run", False) or (name == "cancel" and not identity.anywhere(OPERATORS)):
        return None
    return _action(name, request, identity, context.peer())


class DeniedActions:
    """Writes down what was denied at the gate: that somebody tried is worth knowing."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def note(self, method: str, request: Any, identity: Identity, peer: str) -> None:
        """The record of a call that was denied; nothing where Postgres is away, the log has it."""
        name = ACTIONS.get(method)
        if name is None or request is None:
            return
        action = _action(name, request, identity, peer)
        try:
            await self._db.run(lambda tx: action.note(tx, outcome=PermissionDenied.reason))
        except DatabaseUnavailable as error:
            _log.error("a denied action was not written down", action="audit.denial_unwritten", error=error.message)


def _action(name: str, request: Any, identity: Identity, peer: str) -> Action:
    if isinstance(request, dead_letter_pb2.RedriveDeadLettersRequest | dead_letter_pb2.DiscardDeadLettersRequest):
        return Action(identity.name, peer, name, _letters(request), request.filter.namespace)
    return Action(identity.name, peer, name, getattr(request, "name", "") or getattr(request, "id", ""))


def _letters(
    request: dead_letter_pb2.RedriveDeadLettersRequest | dead_letter_pb2.DiscardDeadLettersRequest,
) -> str:
    """The ids, or the filter; never the payload."""
    if not request.ids:
        return json.dumps({"filter": json_format.MessageToDict(request.filter, preserving_proto_field_name=True)})
    return json.dumps({"ids": [text[:80] for text in request.ids[:MAX_IDS]], "count": len(request.ids)})
