"""Requests as bytes, from a message's descriptor: valid, nearly valid, and anything at all."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

MAX_NESTING = 4
_LENGTH_PREFIXED = 2
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_ODD_TEXTS = (
    "",
    "\0",
    "a\0b",
    "x" * 65,
    "x" * 129,
    "x" * 257,
    "ß" * 300,
    "\U0010ffff" * 70,
    "'; drop table headrace_core.units; --",
    "%(id)s %s {} ${x}",
    "..",
    "*",
    ">",
    "a.b",
    "\u202e",
    "\r\nx: y",
    "00000000-0000-0000-0000-000000000000",
    "99999999999999999999-1",
)
_JSON_TEXTS = (
    b"{}",
    b'{"n": 1}',
    b'{"n": "x"}',
    b"[]",
    b"null",
    b'{"n": NaN}',
    b'{"n": 1e999}',
    b'{"n": ' + b"9" * 400 + b"}",
    b'{"a": "\\u0000"}',
    b'{"a": "\\ud800"}',
    b'{"a": "\xff"}',
    b'{"a":' * 40 + b"1" + b"}" * 40,
    b"[" * 5000,
    b'{"a": 1, "a": 2}',
    b'{"x": "' + b"x" * (1 << 20) + b'"}',
    b'{"x": "' + b"x" * 100_000 + b'"}',
    b"\xef\xbb\xbf{}",
)


class Sent(bytes):
    """Bytes whose representation ends somewhere: a report of a megabyte is no use."""

    def __repr__(self) -> str:
        shown = bytes(self[:400])
        return f"bytes.fromhex({shown.hex()!r})" if len(self) <= 400 else f"{shown!r}… ({len(self)} bytes)"


def requests(descriptor: Descriptor, known: Iterable[str] = ()) -> SearchStrategy[Sent]:
    """The bytes of a request. `known` are texts that mean something to the server: ids, names, tokens."""
    valid = messages(descriptor, tuple(known)).map(lambda message: message.SerializeToString())
    sent = st.one_of(
        valid,
        valid,
        st.builds(bytes.__add__, valid, unknown_fields()),
        mutated(valid),
        st.binary(max_size=64),
        repetitions(descriptor),
    )
    return sent.map(Sent)


def messages(descriptor: Descriptor, known: tuple[str, ...] = (), nesting: int = 0) -> SearchStrategy[Message]:
    """A message with any of its fields set to anything that its type allows."""
    if descriptor.full_name in ("google.protobuf.Struct", "google.protobuf.ListValue", "google.protobuf.Value"):
        return _json_messages(descriptor)
    kind = GetMessageClass(descriptor)
    if nesting >= MAX_NESTING:
        return st.builds(kind)
    fields = {field.name: _field(field, known, nesting) for field in descriptor.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _filled(kind(), values))


def unknown_fields() -> SearchStrategy[bytes]:
    """Fields that no message has, and fields of other types than theirs."""
    numbers = st.one_of(st.integers(1, 20), st.sampled_from([536_870_911, 19_000]))
    varint = numbers.map(lambda number: encoded(number << 3) + encoded(2**64 - 1))
    text = st.builds(prefixed, numbers, st.binary(max_size=20))
    fixed = numbers.map(lambda number: encoded(number << 3 | 1) + b"\xff" * 8)
    group = numbers.map(lambda number: encoded(number << 3 | 3) + encoded(number << 3 | 4))
    return st.one_of(varint, text, fixed, group)


def mutated(originals: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Each with a few bytes changed, cut out, put in or doubled."""
    change = st.tuples(
        st.sampled_from(["flip", "cut", "put", "double", "end"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)
    )
    return st.builds(_changed, originals, st.lists(change, min_size=1, max_size=4))


def repetitions(descriptor: Descriptor) -> SearchStrategy[bytes]:
    """One field very often, and messages within messages within messages."""
    numbers = st.sampled_from([field.number for field in descriptor.fields] or [1])
    often = st.builds(
        lambda number, body, times: prefixed(number, body) * times,
        numbers,
        st.sampled_from([b"", b"\x0a\x00", b"x"]),
        st.sampled_from([1001, 10_001, 40_000]),
    )
    return st.one_of(often, st.builds(nested, numbers, st.sampled_from([30, 99, 101, 3000])))


def nested(number: int, levels: int) -> bytes:
    """A field in which there is itself, `levels` times: a Struct in a Struct for `payload`, nonsense for others."""
    body = b""
    for level in range(levels):
        body = prefixed((number, 2, 1, 5)[level % 4] if levels > 30 else number, body)
    return body


def encoded(number: int) -> bytes:
    """A varint."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def prefixed(number: int, body: bytes) -> bytes:
    """A field of bytes."""
    return encoded(number << 3 | _LENGTH_PREFIXED) + encoded(len(body)) + body


def _field(field: FieldDescriptor, known: tuple[str, ...], nesting: int) -> SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(_value(entry["key"], known, nesting), _value(entry["value"], known, nesting), max_size=4)
    one = _value(field, known, nesting)
    return st.lists(one, max_size=5) if field.is_repeated else one


def _value(field: FieldDescriptor, known: tuple[str, ...], nesting: int) -> SearchStrategy[Any]:
    kind = field.cpp_type
    if kind in _INTEGERS:
        low, high = _INTEGERS[kind]
        return st.one_of(st.sampled_from([0, 1, 2, 1000, low, high]), st.integers(low, high))
    if field.message_type is not None:
        return messages(field.message_type, known, nesting + 1) | _plausible(field.message_type)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, 30) | st.sampled_from([-(2**31), 2**31 - 1])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from([0.0, -0.0, 1e-308, 1e308, math.nan, math.inf, -1.0, 0.5]) | st.floats()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(_JSON_TEXTS) | st.binary(max_size=40)
    return _texts(known)


def _texts(known: tuple[str, ...]) -> SearchStrategy[str]:
    given = [st.sampled_from(known), st.sampled_from(known)] if known else []
    return st.one_of(*given, st.sampled_from(_ODD_TEXTS), st.text(max_size=12))


def _plausible(descriptor: Descriptor) -> SearchStrategy[Message]:
    """A time near now for a Timestamp; others empty."""
    kind = GetMessageClass(descriptor)
    if descriptor.full_name != "google.protobuf.Timestamp":
        return st.builds(kind)
    return st.integers(-120, 100_000).map(lambda seconds: kind(seconds=int(time.time()) + seconds))


def _json_messages(descriptor: Descriptor) -> SearchStrategy[Message]:
    leaves = st.none() | st.booleans() | st.floats() | st.text(max_size=5)
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )
    kind = GetMessageClass(descriptor)
    if descriptor.name != "Struct":
        return st.builds(kind)
    return st.dictionaries(st.text(max_size=3), values, max_size=3).map(lambda found: _struct(kind(), found))


def _struct(message: Any, found: Mapping[str, Any]) -> Any:
    message.update(found)
    return message


def _filled(message: Any, values: Mapping[str, Any]) -> Any:
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if field.message_type is None and not field.is_repeated:
            setattr(message, name, value)
        elif isinstance(value, Message):
            getattr(message, name).CopyFrom(value)
        elif isinstance(value, dict):
            getattr(message, name).update(value)
        else:
            getattr(message, name).extend(value)
    return message


def _changed(data: bytes, changes: Iterable[tuple[str, float, bytes]]) -> bytes:
    for how, where, extra in changes:
        at = int(where * len(data))
        if how == "flip" and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ extra[0]]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at] + data[at + len(extra) :]
        elif how == "put":
            data = data[:at] + extra + data[at:]
        elif how == "double":
            data = data[:at] + data[at // 2 :]
        elif how == "end":
            data = data[:at]
    return data


def framed(data: bytes, *, compressed: int = 0) -> bytes:
    """A message of gRPC: a flag, four bytes of length, the message."""
    return struct.pack(">BI", compressed, len(data)) + data
