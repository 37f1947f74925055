"""Who is alone is not kept waiting; a crowd is."""

import asyncio

from headrace_core.runtime.pace import Pace


class Clock:
    """The loop's time, while the loop sleeps; how long it slept."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def waited(self, pace: Pace) -> float:
        before = self._loop.time()
        await pace.gather()
        return self._loop.time() - before


async def test_what_comes_one_by_one_goes_at_once() -> None:
    pace, clock = Pace(seconds=0.2, crowd=6), Clock()
    for _ in range(5):
        assert await clock.waited(pace) < 0.1
        pace.took(1)


async def test_in_a_crowd_batches_keep_their_distance() -> None:
    pace, clock = Pace(seconds=0.2, crowd=6), Clock()
    pace.took(3)
    assert await clock.waited(pace) < 0.1
    pace.took(3)
    assert await clock.waited(pace) > 0.15


async def test_after_a_crowd_the_next_one_alone_is_free_again() -> None:
    pace, clock = Pace(seconds=0.05, crowd=6), Clock()
    pace.took(100)
    await pace.gather()
    pace.took(1)
    assert await clock.waited(pace) < 0.04
