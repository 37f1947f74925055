"""The one table of who may do what: method, where its namespace is found, roles. Pure; docs/access.md is made from it.

A method without a row is denied to everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from headrace_core.access.identity import EVERY, Identity, Role, Roles
from headrace_core.errors import PermissionDenied

DEFAULT_NAMESPACE = "default"


class Where(StrEnum):
    """In which namespace the role is needed. The values are the words of the documentation."""

    OPEN = "open to everybody, without credentials"
    KNOWN = "any identity, without a role"
    ANY = "any namespace"
    EVERY = "every namespace (`*`)"
    REQUEST = "the request's namespace"
    EACH = "each task's namespace; the others are answered on their own"
    FOUND = "the namespace of what is found; a stranger's is NOT_FOUND"
    FILTER = "the filter's namespaces, what lies elsewhere is left out; by id: as what is found"


@dataclass(frozen=True, slots=True)
class Row:
    """Who may call a method: one of `roles`, in the namespace that `where` says."""

    where: Where
    roles: Roles = ()


READERS: Roles = (Role.READ,)
SUBMITTERS: Roles = (Role.SUBMIT,)
OPERATORS: Roles = (Role.OPERATE,)
CANCELLERS: Roles = (Role.SUBMIT, Role.OPERATE)

TABLE: Mapping[str, Row] = {
    "headrace.v1.ProducerService/SubmitTask": Row(Where.REQUEST, SUBMITTERS),
    "headrace.v1.ProducerService/SubmitTasks": Row(Where.EACH, SUBMITTERS),
    "headrace.v1.ProducerService/CancelTask": Row(Where.FOUND, CANCELLERS),
    "headrace.v1.DeadLetterService/ListDeadLetters": Row(Where.FILTER, READERS),
    "headrace.v1.DeadLetterService/GetDeadLetter": Row(Where.FOUND, READERS),
    "headrace.v1.DeadLetterService/RedriveDeadLetters": Row(Where.FILTER, OPERATORS),
    "headrace.v1.DeadLetterService/DiscardDeadLetters": Row(Where.FILTER, OPERATORS),
    "headrace.v1.QueueService/ListQueues": Row(Where.ANY, READERS),
    "headrace.v1.QueueService/GetQueue": Row(Where.ANY, READERS),
    "headrace.v1.QueueService/PauseQueue": Row(Where.EVERY, OPERATORS),
    "headrace.v1.QueueService/ResumeQueue": Row(Where.EVERY, OPERATORS),
    "headrace.v1.QueueService/PurgeQueue": Row(Where.EVERY, OPERATORS),
    "headrace.v1.StatusService/GetTask": Row(Where.FOUND, READERS),
    "headrace.v1.StatusService/ListTasks": Row(Where.FILTER, READERS),
    "headrace.v1.StatusService/WatchTask": Row(Where.FOUND, READERS),
    "headrace.v1.StatusService/WatchTasks": Row(Where.FILTER, READERS),
    "headrace.v1.StatusService/GetSystemStatus": Row(Where.ANY, READERS),
    "headrace.v1.StatusService/GetInferenceStatus": Row(Where.ANY, READERS),
    "externalscaler.ExternalScaler/IsActive": Row(Where.EVERY, READERS),
    "externalscaler.ExternalScaler/StreamIsActive": Row(Where.EVERY, READERS),
    "externalscaler.ExternalScaler/GetMetricSpec": Row(Where.EVERY, READERS),
    "externalscaler.ExternalScaler/GetMetrics": Row(Where.EVERY, READERS),
    "grpc.health.v1.Health/Check": Row(Where.OPEN),
    "grpc.health.v1.Health/Watch": Row(Where.OPEN),
    "grpc.health.v1.Health/List": Row(Where.OPEN),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Row(Where.KNOWN),
    "GET /": Row(Where.ANY, READERS),
    "GET /api/async-status": Row(Where.ANY, READERS),
    "GET /api/ai-status": Row(Where.ANY, READERS),
}


def row_of(method: str) -> Row:
    """The row of a method. Raises PermissionDenied if it has none."""
    row = TABLE.get(method)
    if row is None:
        raise PermissionDenied(f"nobody may call {method}: it is not in the table of access")
    return row


def authorize(row: Row, identity: Identity, request: Any) -> None:
    """What can be decided before anything is looked up; the rest belongs to the use case. Raises PermissionDenied.

    `request` is None where its bytes are no message: then a role anywhere is enough to learn that.
    """
    if row.where in (Where.OPEN, Where.KNOWN):
        return
    if row.where is Where.EVERY:
        identity.require(row.roles, EVERY)
    elif row.where is Where.REQUEST and request is not None:
        identity.require(row.roles, namespace_of(request))
    elif not identity.anywhere(row.roles):
        raise identity.denied(row.roles, "any namespace")


def namespace_of(request: Any) -> str:
    """The namespace that a request for one names; unset it is the default one."""
    return getattr(request, "namespace", "") or DEFAULT_NAMESPACE
