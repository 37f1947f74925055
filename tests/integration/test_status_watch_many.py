"""Many tasks on one stream: by ids it ends with the last of them, by filter it finds what is created later."""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import Any
from uuid import UUID

import pytest

from headrace.v1.event_pb2 import TaskEvent
from headrace_core.errors import SequenceBeyondEnd, ServerLimit, TaskNotFound
from headrace_core.tasks.model import Wake
from headrace_core.tasks.reading import TaskFilter
from headrace_core.tasks.submit import submit
from status.filters import WatchStart
from tests.factories import a_holder, a_task, submitted
from tests.integration.status_rig import NO_SWEEP, SWEEP_ONLY, Rig, Stream, new_id, rig, run_task, sequences

HOLDER = a_holder()
RED = TaskFilter(labels=(("colour", "red"),))


def of_task(events: list[TaskEvent], task_id: UUID) -> list[TaskEvent]:
    return [event for event in events if event.task_id == str(task_id)]


def ended(event: TaskEvent) -> bool:
    return event.state_change.terminal or event.snapshot.HasField("end_time")


async def following(status: Rig, **changes: Any) -> Stream:
    """A watch of RED; its first word is a heartbeat."""
    stream = status.open_with(WatchStart(wanted=RED, **changes))
    assert (await stream.next()).HasField("heartbeat")
    return stream


async def red(status: Rig, **changes: object) -> UUID:
    task_id = new_id()
    await submitted(status.db, id=task_id, labels={"colour": "red"}, **changes)
    return task_id


async def test_a_watch_of_ids_ends_after_the_last_terminal_event(database_url: str) -> None:
    async with rig(database_url) as status:
        ids = tuple([(await submitted(status.db)).id for _ in range(4)])
        await run_task(status.db, HOLDER, ids[3], outputs=1)
        stream = status.open_with(WatchStart(ids))
        for _ in ids:
            assert (await stream.next()).HasField("snapshot")
        for index, task_id in enumerate(ids[:3]):
            status.wake(await run_task(status.db, HOLDER, task_id, outputs=index))
        events = await stream.rest()
        for index, task_id in enumerate(ids[:3]):
            assert sequences(of_task(events, task_id)) == list(range(2, 4 + index))
        assert len(of_task(events, ids[3])) == 1
        assert status.hub.watched == 0


async def test_some_resume_and_the_others_begin_with_a_snapshot(database_url: str) -> None:
    async with rig(database_url) as status:
        ids = tuple([(await submitted(status.db)).id for _ in range(3)])
        for task_id in ids:
            await run_task(status.db, HOLDER, task_id, outputs=2)
        events = await status.open_with(WatchStart(ids, after={ids[0]: 2, ids[1]: 5})).rest()
        assert [event.sequence for event in of_task(events, ids[0])] == [3, 4, 5]
        assert of_task(events, ids[1]) == []
        assert of_task(events, ids[2])[0].HasField("snapshot")


async def test_one_task_that_is_not_there_refuses_the_stream_before_its_first_event(database_url: str) -> None:
    async with rig(database_url) as status:
        known, unknown = await submitted(status.db), new_id()
        with pytest.raises(TaskNotFound, match=str(unknown)):
            await status.open_with(WatchStart((known.id, unknown))).next()
        with pytest.raises(SequenceBeyondEnd, match=str(known.id)):
            await status.open_with(WatchStart((known.id,), after={known.id: 9})).next()


async def test_two_thousand_tasks_on_one_stream(database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY) as status:
        tasks = [a_task(id=new_id()) for _ in range(2_000)]
        await submit(status.db, tasks)
        ids = tuple(task.id for task in tasks)
        stream = status.open_with(WatchStart(ids, after=dict.fromkeys(ids[:1_000], 1)))
        for _ in range(1_000):
            assert (await stream.next()).HasField("snapshot")
        rest = asyncio.create_task(stream.rest(within=30.0))
        await status.db.run(
            lambda tx: tx.execute(
                """with ended as (
                    update headrace_core.units set state = 'CANCELLED', sequence = sequence + 1, ended_at = now()
                    where unit = -1 returning task_id, sequence)
                insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, terminal)
                select task_id, sequence, 1, -1, 0, 'state', 'CANCELLED', true from ended"""
            )
        )
        events = await rest
        ends = [event for event in events if event.state_change.terminal]
        assert sorted(event.task_id for event in ends) == sorted(map(str, ids))
        assert not any(event.HasField("gap") for event in events)


async def test_a_filter_begins_with_what_has_not_ended(database_url: str) -> None:
    async with rig(database_url) as status:
        over, first, second = [await red(status) for _ in range(3)]
        await run_task(status.db, HOLDER, over, outputs=0)
        await submitted(status.db, id=new_id(), labels={"colour": "blue"})
        stream = await following(status)
        seen = [(await stream.next()).task_id for _ in range(2)]
        assert seen == [str(second), str(first)]  # the newest first
        await stream.close()


@pytest.mark.parametrize("woken", [True, False], ids=["by wakes", "without any wake"])
async def test_a_filter_finds_tasks_that_are_created_later(database_url: str, *, woken: bool) -> None:
    async with rig(database_url, NO_SWEEP if woken else SWEEP_ONLY, heartbeat=0.2) as status:
        stream = await following(status)
        blue = new_id()
        await submitted(status.db, id=blue, labels={"colour": "blue"})
        task_id = await red(status)
        wakes = [Wake(blue, 1), Wake(task_id, 1), *await run_task(status.db, HOLDER, task_id, outputs=3)]
        for wake in wakes if woken else []:
            status.wake([wake])

        while not ended(await stream.next()):
            pass
        events = of_task(stream.seen, task_id)
        start = events[0].sequence
        assert events[0].HasField("snapshot")
        assert [event.sequence for event in events] == list(range(start, 7))
        assert of_task(stream.seen, blue) == []
        await stream.close()


async def test_a_filter_shows_what_it_has_seen_end_only_once(database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY, heartbeat=0.5) as status:
        task_id = await red(status)
        stream = await following(status)
        assert (await stream.next()).HasField("snapshot")
        wakes = await run_task(status.db, HOLDER, task_id, outputs=0)
        assert [(await stream.next()).sequence for _ in range(2)] == [2, 3]
        status.wake(wakes)  # late ones, and sweeps all the time
        assert (await stream.next()).HasField("heartbeat")
        await stream.close()


async def test_a_filter_resumes_tasks_that_have_ended_meanwhile(database_url: str) -> None:
    async with rig(database_url) as status:
        over, open_one = await red(status), await red(status)
        await run_task(status.db, HOLDER, over, outputs=1)
        stream = await following(status, after={over: 2, open_one: 1})
        assert [(await stream.next()).sequence for _ in range(2)] == [3, 4]
        status.wake(await run_task(status.db, HOLDER, open_one, outputs=0))
        assert [(await stream.next()).sequence for _ in range(2)] == [2, 3]
        await stream.close()


async def test_a_filter_resumes_with_what_began_and_ended_meanwhile(database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY, heartbeat=0.3) as status:
        known = await red(status)
        stream = await following(status)
        await stream.next()
        await run_task(status.db, HOLDER, known, outputs=0)
        assert [(await stream.next()).sequence for _ in range(2)] == [2, 3]
        since = stream.seen[0].time.ToDatetime(tzinfo=UTC)
        await stream.close()

        missed, blue = await red(status), await submitted(status.db, id=new_id(), labels={"colour": "blue"})
        await run_task(status.db, HOLDER, missed, outputs=1)
        await run_task(status.db, HOLDER, blue.id, outputs=1)
        again = await following(status, after={known: 3}, ended_since=since)
        event = await again.next()
        assert (event.task_id, event.sequence, ended(event)) == (str(missed), 4, True)
        assert (await again.next()).HasField("heartbeat")
        await again.close()


async def test_a_filter_follows_a_redriven_task_from_where_it_saw_it_end(database_url: str) -> None:
    async with rig(database_url) as status:
        task_id = await red(status)
        stream = await following(status)
        await stream.next()
        status.wake(await run_task(status.db, HOLDER, task_id, outputs=0))
        assert [(await stream.next()).sequence for _ in range(2)] == [2, 3]
        await status.db.run(
            lambda tx: tx.execute(
                """with again as (
                    update headrace_core.units set state = 'PENDING', sequence = 4 where unit = -1 returning task_id)
                insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, reason)
                select task_id, 4, 2, -1, 0, 'state', 'PENDING', 'REDRIVEN' from again"""
            )
        )
        status.wake([Wake(task_id, 4)])
        event = await stream.next()
        assert (event.sequence, event.WhichOneof("event")) == (4, "state_change")
        await stream.close()


async def test_filters_are_limited(database_url: str) -> None:
    async with rig(database_url, max_filter_watches=1, heartbeat=0.05) as status:
        stream = await following(status)
        with pytest.raises(ServerLimit):
            await following(status)
        await stream.close()
        await (await following(status)).close()
