"""From a domain error to google.rpc.Status: the one place that decides what a refused client gets to read.

The same message fills the trailing metadata of a failed RPC and the SubmitError of a batch.
"""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import StatusCode

from headrace_core.errors import DomainError, Violation

DOMAIN = "headrace"
# Trailing metadata over 8 KiB makes gRPC clients answer RESOURCE_EXHAUSTED instead of the error. On the wire the
# message is percent-encoded (each byte that is not ASCII becomes three) and stands there twice, the details in base64.
MAX_MESSAGE_BYTES = 768
MAX_DESCRIPTION_BYTES = 256
MAX_VIOLATIONS_BYTES = 2048
MAX_METADATA_BYTES = 512


def status_of(error: DomainError) -> status_pb2.Status:
    """The status of a domain error: ErrorInfo always; BadRequest, QuotaFailure and RetryInfo where they apply."""
    message = cut(error.message, MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=number_of(error.code), message=message)
    _add(status, error_info(error.reason, error.metadata))
    if error.violations:
        _add(status, _bad_request(error.violations))
    if error.code is StatusCode.RESOURCE_EXHAUSTED:
        subject = error.metadata.get("queue") or error.metadata.get("namespace") or "server"
        said = f"{error.reason}: {cut(error.message, MAX_DESCRIPTION_BYTES)}"
        violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=said)
        _add(status, error_details_pb2.QuotaFailure(violations=[violation]))
    retry_after = error.default_retry_after if error.retry_after is None else error.retry_after
    if retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        _add(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def internal_status(request_id: str) -> status_pb2.Status:
    """The status of a defect: nothing but the id under which the server's log has the rest."""
    status = status_pb2.Status(
        code=number_of(StatusCode.INTERNAL),
        message=f"internal error; the server's log has the details under request id {request_id}",
    )
    _add(status, error_info("INTERNAL", {"request_id": request_id}))
    return status


def error_info(reason: str, metadata: dict[str, str]) -> error_details_pb2.ErrorInfo:
    """The reason for programs, with as many of the facts as fit."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    left = MAX_METADATA_BYTES
    for key, value in metadata.items():
        text = cut(value, MAX_DESCRIPTION_BYTES)
        left -= len(key) + len(text.encode())
        if left < 0:
            break
        info.metadata[key] = text
    return info


def number_of(code: StatusCode) -> int:
    """The google.rpc.Code of a status code of grpc."""
    number: int = code.value[0]
    return number


def cut(text: str, limit: int) -> str:
    """`text` as UTF-8 of at most `limit` bytes, with an ellipsis where something is missing."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode("utf-8", "ignore") + "…"


def _bad_request(violations: list[Violation]) -> error_details_pb2.BadRequest:
    """Every violation, as far as the metadata of a gRPC response has room; the last one then counts the others."""
    found = error_details_pb2.BadRequest()
    left = MAX_VIOLATIONS_BYTES
    for index, violation in enumerate(violations):
        field = cut(violation.field, MAX_DESCRIPTION_BYTES)
        description = cut(violation.description, MAX_DESCRIPTION_BYTES)
        left -= len(field.encode()) + len(description.encode()) + 8
        if left < 0:
            found.field_violations.add(description=f"and {len(violations) - index} more")
            break
        found.field_violations.add(field=field, description=description)
    return found


def _add(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)
