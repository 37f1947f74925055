"""Requests that protobuf refuses whole although one value in them is bad: which one, and the rest of its batch.

A Struct nested too deeply, or a text that is no UTF-8 (half a surrogate pair), makes a message unreadable, and a
thousand tasks with it. The wire format's outermost level can still be read: it splits a batch into its requests and a
request into its fields, and each is then tried alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from headrace.json_text import MAX_DEPTH
from headrace.v1 import producer_pb2
from headrace_core.errors import InvalidFields, MalformedMessage, Violation
from producer.validation import MAX_REQUESTS

# More than any request within our limits has, and little enough work for the event loop.
MAX_FIELDS = 2 * MAX_REQUESTS
_LENGTH_PREFIXED = 2
_FIXED_SIZE = {1: 8, 5: 4}
_LONGEST_VARINT = 10
_REQUESTS = producer_pb2.SubmitTasksRequest.DESCRIPTOR.fields_by_name["requests"].number

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class SalvagedBatch:
    """A SubmitTasksRequest of which at least one request could not be read; its error stands in its place."""

    requests: list[producer_pb2.SubmitTaskRequest | InvalidFields | MalformedMessage]


def salvaged_batch(data: bytes) -> SalvagedBatch:
    """What can be read of a SubmitTasksRequest. Raises DecodeError if not even its outermost level can."""
    fields = _fields(data)
    return SalvagedBatch([_request(field.content) for field in fields if field.number == _REQUESTS])


def refused_request(data: bytes) -> producer_pb2.SubmitTaskRequest:
    """The SubmitTaskRequest after all, or why not.

    Raises:
        InvalidFields: it names the fields that cannot be read.
        DecodeError: the bytes are no message at all.
    """
    violations = list(_unreadable(producer_pb2.SubmitTaskRequest, data))
    if violations:
        raise InvalidFields.of(violations)
    return producer_pb2.SubmitTaskRequest.FromString(data)


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of the outermost level: `whole` with its tag, `content` without (empty unless length-prefixed)."""

    number: int
    whole: bytes
    content: bytes


def _request(data: bytes) -> producer_pb2.SubmitTaskRequest | InvalidFields | MalformedMessage:
    try:
        return producer_pb2.SubmitTaskRequest.FromString(data)
    except DecodeError as error:
        refusal = MalformedMessage(f"the bytes are no SubmitTaskRequest: {error}")
    try:
        return refused_request(data)
    except InvalidFields as error:
        return error
    except DecodeError:
        return refusal


def _unreadable(kind: type[M], data: bytes) -> Iterator[Violation]:
    names = kind.DESCRIPTOR.fields_by_number
    for field in _fields(data):
        try:
            kind.FromString(field.whole)
        except DecodeError as error:
            name = names[field.number].name if field.number in names else f"field {field.number}"
            yield Violation(name, _said(str(error)))


def _said(error: str) -> str:
    """Protobuf's own words name the cause after the type; other versions of it may use others."""
    if "epth" in error:
        return f"it is nested too deeply; at most {MAX_DEPTH} levels are allowed"
    if "UTF-8" in error:
        return "a text in it is not UTF-8 (half a surrogate pair, for example)"
    return f"it cannot be read: {error}"


def _fields(data: bytes) -> list[_Field]:
    """The fields of a message's outermost level. Raises DecodeError for bytes that have none, or too many."""
    found: list[_Field] = []
    at = 0
    while at < len(data):
        if len(found) == MAX_FIELDS:
            raise DecodeError(f"more than {MAX_FIELDS} fields")
        tag, start = _varint(data, at)
        start, end = _extent(data, start, tag & 7)
        if end > len(data):
            raise DecodeError("a field is cut off")
        found.append(_Field(tag >> 3, data[at:end], data[start:end]))
        at = end
    return found


def _extent(data: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Where a value begins and ends."""
    if wire_type == _LENGTH_PREFIXED:
        size, start = _varint(data, at)
        return start, start + size
    if wire_type == 0:
        return at, _varint(data, at)[1]
    if wire_type in _FIXED_SIZE:
        return at, at + _FIXED_SIZE[wire_type]
    raise DecodeError(f"wire type {wire_type}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_LONGEST_VARINT):
        if at + index >= len(data):
            raise DecodeError("a number is cut off")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise DecodeError("a number has no end")
