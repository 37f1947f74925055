"""Arrays as we write them are what Postgres reads."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from headrace_core.db import arrays
from headrace_core.db.pool import Database


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest.mark.parametrize(
    ("array", "kind", "expected"),
    [
        (arrays.uuids([UUID(int=1), UUID(int=2**127)]), "uuid[]", [UUID(int=1), UUID(int=2**127)]),
        (arrays.ints([0, -1, 2**31 - 1]), "int[]", [0, -1, 2**31 - 1]),
        (arrays.texts([b"a", None, "王".encode(), b""]), "text[]", ["a", None, "王", ""]),
        (arrays.byteas([b"\x00\xff", None, b""]), "bytea[]", [b"\x00\xff", None, b""]),
        (arrays.uuids([]), "uuid[]", []),
        (arrays.ints([]), "int[]", []),
        (arrays.texts([]), "text[]", []),
    ],
    ids=["uuids", "ints", "texts", "byteas", "no uuids", "no ints", "no texts"],
)
async def test_an_array_arrives_as_it_was(db: Database, array: arrays.Array, kind: str, expected: list[Any]) -> None:
    for _ in range(3):  # the third time as a prepared statement
        (row,) = await db.fetch(f"select %(array)b::{kind} as found", {"array": array})
        assert row["found"] == expected


async def test_arrays_of_different_types_go_side_by_side(db: Database) -> None:
    rows = await db.fetch(
        "select * from unnest(%(ids)b::uuid[], %(names)b::text[], %(none)b::int[]) as r (id, name, number)",
        {"ids": arrays.uuids([UUID(int=7)]), "names": arrays.texts([b"x"]), "none": arrays.ints([])},
    )
    assert rows == [{"id": UUID(int=7), "name": "x", "number": None}]
