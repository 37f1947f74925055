"""Reads are shared by those who wait together, and fail for all of them or for none."""

import asyncio

import pytest

from status.coalesce import Coalescer
from tests.fixtures.waiting import eventually


class Fetch:
    """A fetch that a test lets go when it likes."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.open = asyncio.Event()
        self.entered = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, keys: list[int]) -> dict[int, str]:
        self.calls.append(keys)
        self.entered.set()
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return {key: str(key) for key in keys if key >= 0}


async def test_those_who_come_during_a_fetch_share_the_next_one() -> None:
    fetch = Fetch()
    reads = Coalescer("numbers", fetch, max_keys=100)
    first = asyncio.create_task(reads.get(0))
    await fetch.entered.wait()
    others = [asyncio.create_task(reads.get(number % 5)) for number in range(20)]
    many = asyncio.create_task(reads.get_many([7, 8, -1]))
    await eventually(lambda: len(reads._waiting) == 8)
    fetch.open.set()
    assert await first == "0"
    assert await asyncio.gather(*others) == [str(number % 5) for number in range(20)]
    assert await many == {7: "7", 8: "8"}
    assert fetch.calls == [[0], [0, 1, 2, 3, 4, 7, 8, -1]]


async def test_a_go_is_bounded() -> None:
    fetch = Fetch()
    fetch.open.set()
    reads = Coalescer("numbers", fetch, max_keys=3)
    assert len(await reads.get_many(range(10))) == 10
    assert [len(keys) for keys in fetch.calls] == [3, 3, 3, 1]


async def test_what_is_not_there_is_none() -> None:
    fetch = Fetch()
    fetch.open.set()
    assert await Coalescer("numbers", fetch, max_keys=3).get(-1) is None


async def test_a_failure_reaches_everybody_and_the_next_go_is_a_new_one() -> None:
    fetch = Fetch()
    fetch.open.set()
    fetch.error = ValueError("away")
    reads = Coalescer("numbers", fetch, max_keys=3)
    results = await asyncio.gather(reads.get(1), reads.get(2), reads.get_many([3]), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 3
    fetch.error = None
    assert await reads.get(1) == "1"


async def test_who_leaves_takes_nothing_from_the_others() -> None:
    fetch = Fetch()
    reads = Coalescer("numbers", fetch, max_keys=3)
    leaving, staying = asyncio.create_task(reads.get(1)), asyncio.create_task(reads.get(1))
    await fetch.entered.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    fetch.open.set()
    assert await staying == "1"


async def test_close_lets_nobody_wait() -> None:
    fetch = Fetch()
    reads = Coalescer("numbers", fetch, max_keys=1)
    waiting = [asyncio.create_task(reads.get(number)) for number in (1, 2)]
    await fetch.entered.wait()
    await reads.close()
    done, _ = await asyncio.wait(waiting, timeout=1.0)
    assert all(task.cancelled() for task in done)
    assert len(done) == 2
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
