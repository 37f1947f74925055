"""What stands in the details of a failed call, taken apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DOMAIN = "headrace"
DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that breaks a documented limit."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Details:
    """The reason, what is wrong with which field, and the advice when to try again."""

    reason: str
    violations: tuple[Violation, ...]
    retry_after: float | None

    @classmethod
    def read(cls, details: Iterable[AnyMessage]) -> Details:
        """Pick ours out of `details`; what somebody else added is passed over."""
        reason, violations, retry_after = "", [], None
        info, request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        for detail in details:
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
            elif detail.Unpack(request):
                violations = [Violation(one.field, one.description) for one in request.field_violations]
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        return cls(reason, tuple(violations), retry_after)


def trailing_details(error: grpc.aio.AioRpcError) -> Sequence[AnyMessage]:
    """Return the details of a failed call; none if there are none that can be read."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                details: Sequence[AnyMessage] = status_pb2.Status.FromString(value).details
            except DecodeError:
                return ()  # not ours: the status code still tells the class
            return details
    return ()
