"""Arrays in Postgres' binary format, made in one go.

psycopg looks for a dumper and calls it for each element, 0.4 µs each, which for the thirteen columns of a batch was a
sixth of what accepting a task cost. The format is that of `array_recv` in PostgreSQL: the number of dimensions, whether
there are nulls, the element type, length and lower bound of the dimension, then each element after its length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from uuid import UUID

from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEAD = struct.Struct(">iiIii")
_EMPTY = struct.Struct(">iiI")
_LENGTH = struct.Struct(">i")
_UUID_LENGTH = _LENGTH.pack(16)
_NULL = _LENGTH.pack(-1)


class Array:
    """An encoded array; each subclass is a type of Postgres."""

    element = 0
    """The oid of the element type."""
    oid = 0
    """The oid of the array type."""

    __slots__ = ("data",)

    def __init__(self, count: int, body: bytes, *, nulls: bool = False) -> None:
        head = _HEAD.pack(1, nulls, self.element, count, 1) if count else _EMPTY.pack(0, 0, self.element)
        self.data = head + body


class Uuids(Array):
    """`uuid[]`."""

    element, oid = 2950, 2951
    __slots__ = ()


class Ints(Array):
    """`int4[]`."""

    element, oid = 23, 1007
    __slots__ = ()


class Texts(Array):
    """`text[]`."""

    element, oid = 25, 1009
    __slots__ = ()


class Byteas(Array):
    """`bytea[]`."""

    element, oid = 17, 1001
    __slots__ = ()


def uuids(values: Sequence[UUID]) -> Uuids:
    """A `uuid[]`."""
    return Uuids(len(values), b"".join([_UUID_LENGTH + value.bytes for value in values]))


def ints(values: Sequence[int]) -> Ints:
    """An `int4[]`. Raises struct.error for a number that does not fit."""
    numbers = [4] * (2 * len(values))
    numbers[1::2] = values
    return Ints(len(values), struct.pack(f">{len(numbers)}i", *numbers))


def texts(values: Sequence[bytes | None]) -> Texts:
    """A `text[]` of UTF-8 texts; None is null."""
    return Texts(len(values), _elements(values), nulls=None in values)


def byteas(values: Sequence[bytes | None]) -> Byteas:
    """A `bytea[]`; None is null."""
    return Byteas(len(values), _elements(values), nulls=None in values)


def _elements(values: Iterable[bytes | None]) -> bytes:
    pack = _LENGTH.pack
    return b"".join([_NULL if value is None else pack(len(value)) + value for value in values])


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


def register(context: AdaptContext) -> None:
    """Teach a connection these types."""
    for kind in (Uuids, Ints, Texts, Byteas):
        dumper = type(f"{kind.__name__}Dumper", (_ArrayDumper,), {"oid": kind.oid})
        context.adapters.register_dumper(kind, dumper)


__all__ = ["Array", "byteas", "ints", "register", "texts", "uuids"]
