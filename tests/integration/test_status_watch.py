"""Promise G6: a snapshot, then every later event once, in order, and an end; resumed from anywhere; gaps are said."""

from __future__ import annotations

import asyncio

import pytest

from headrace.v1 import task_pb2
from headrace_core.errors import Draining, SequenceBeyondEnd, ServerLimit, TaskNotFound
from headrace_core.tasks.cancel import cancel
from headrace_core.tasks.model import Complete, Fail, Report
from headrace_core.tasks.reading import read_positions
from headrace_core.tasks.report import report
from headrace_core.tasks.settle import settle
from headrace_core.telemetry import metrics
from status.filters import WatchStart
from tests.factories import a_holder, claimed, planned, submitted
from tests.fixtures.waiting import eventually
from tests.integration.status_rig import SWEEP_ONLY, new_id, rig, run_task, sequences

HOLDER = a_holder()


async def test_a_watch_begins_with_a_snapshot_and_ends_after_the_terminal_event(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        first = await stream.next()
        assert first.snapshot.state == task_pb2.TASK_STATE_PENDING
        assert first.sequence == first.snapshot.sequence == 1
        status.wake(await run_task(status.db, HOLDER, task.id, outputs=3))
        events = await stream.rest()
        assert sequences(events) == [2, 3, 4, 5, 6]
        assert events[-1].state_change.terminal
        assert [event.task_id for event in events] == [str(task.id)] * 6
        assert status.hub.watched == 0
        assert status.hub.buffered_bytes == 0


async def test_a_watch_of_an_ended_task_is_its_snapshot(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        await run_task(status.db, HOLDER, task.id, outputs=0)
        (event,) = await status.open(task.id).rest()
        assert event.snapshot.state == task_pb2.TASK_STATE_COMPLETED


async def test_a_watch_cut_anywhere_and_resumed_gives_every_event_once_and_in_order(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        await run_task(status.db, HOLDER, task.id, outputs=12)
        last = 15
        whole = sequences(await status.open(task.id, after=0).rest())
        assert whole == list(range(1, last + 1))
        for cut in range(last + 1):
            stream = status.open(task.id, after=0)
            head = [(await stream.next()).sequence for _ in range(cut)]
            await stream.close()
            resumed = status.open(task.id, after=cut)
            tail = await resumed.rest()
            assert all(not event.HasField("snapshot") for event in tail)
            assert head + [event.sequence for event in tail] == whole


async def test_a_watch_cut_anywhere_while_the_task_runs_loses_and_repeats_nothing(database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY) as status:
        task = await submitted(status.db)
        running = asyncio.create_task(run_task(status.db, HOLDER, task.id, outputs=60))
        seen: list[int] = []
        while 63 not in seen:
            stream = status.open(task.id, after=seen[-1] if seen else 0)
            for _ in range(7):
                if 63 in seen:
                    break
                seen.append((await stream.next()).sequence)
            await stream.close()
        await running
        assert seen == list(range(1, 64))


async def test_every_wake_lost_and_the_watch_still_ends(database_url: str) -> None:
    async with rig(database_url, sweep=2.0, sweep_without_bus=2.0) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        await stream.next()
        await run_task(status.db, HOLDER, task.id, outputs=5)
        assert sequences(await stream.rest(within=3.0)) == list(range(2, 9))


async def test_a_wake_alone_is_served_at_once(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        await stream.next()
        unit = await claimed(status.db, HOLDER, task.id)
        status.wake(await report(status.db, [Report(unit.lease, "progress", fraction=0.5, text="half")]))
        events = [await stream.next(within=1.0), await stream.next(within=1.0)]
        assert events[0].state_change.state == task_pb2.TASK_STATE_PROCESSING
        assert (events[1].progress.progress.fraction, events[1].progress.progress.message) == (0.5, "half")
        await stream.close()


async def test_events_between_the_read_and_the_join_are_found_although_their_wakes_met_nobody(
    database_url: str,
) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        stands = (await read_positions(status.db, [task.id]))[task.id]
        status.wake(await run_task(status.db, HOLDER, task.id, outputs=0))
        with status.hub.watcher() as watcher:
            track = status.hub.join(watcher, task.id, stands, stands.sequence)
            await eventually(lambda: track.topic.cursor == 3)
            assert await watcher.wait(5.0)
            assert watcher.take_ready() == [track]
            events = track.topic.take(track.position)
        assert events is not None
        assert sequences(events) == [2, 3]


def _gaps(cause: str) -> float:
    return metrics.REGISTRY.get_sample_value("headrace_watch_gaps_total", {"cause": cause}) or 0.0


async def test_removed_history_is_a_gap_and_a_snapshot(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        await run_task(status.db, HOLDER, task.id, outputs=10)
        await _remove(status.db, task.id, up_to=8)
        gaps = _gaps("retention")
        events = await status.open(task.id, after=3).rest()
        assert _gaps("retention") == gaps + 1
        assert [event.WhichOneof("event") for event in events] == ["gap", "snapshot"]
        assert events[0].gap.after_sequence == 3
        assert [event.sequence for event in events] == [13, 13]
        assert events[1].snapshot.state == task_pb2.TASK_STATE_COMPLETED
        assert sequences(await status.open(task.id, after=8).rest()) == [9, 10, 11, 12, 13]


async def test_all_history_removed_is_a_gap_unless_nothing_was_missed(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        await run_task(status.db, HOLDER, task.id, outputs=0)
        await _remove(status.db, task.id, up_to=100)
        events = await status.open(task.id, after=1).rest()
        assert [event.WhichOneof("event") for event in events] == ["gap", "snapshot"]
        assert await status.open(task.id, after=3).rest() == []


async def test_a_slow_watcher_gets_a_gap_and_others_get_everything(database_url: str) -> None:
    async with rig(database_url, topic_events=10) as status:
        task = await submitted(status.db)
        slow, fast = status.open(task.id), status.open(task.id)
        gaps = _gaps("too_slow")
        await slow.next()
        await fast.next()
        unit = await claimed(status.db, HOLDER, task.id)
        status.wake(await report(status.db, [Report(unit.lease, "output", text="x", byte_offset=0)]))
        assert sequences([await slow.next()]) == [2]  # it was live
        for index in range(1, 40):
            wakes = await report(status.db, [Report(unit.lease, "output", text="x", byte_offset=index)])
            status.wake(wakes)
            while sequences(fast.seen)[-1:] != [wakes[0].sequence]:
                await fast.next()
        status.wake((await settle(status.db, [Complete(unit.lease, b"{}")])).wakes)
        await fast.rest()
        assert sequences(fast.seen) == list(range(2, 44))
        events = await slow.rest()
        kinds = [event.WhichOneof("event") for event in events]
        at = kinds.index("gap")
        assert kinds[at : at + 2] == ["gap", "snapshot"]
        assert _gaps("too_slow") == gaps + kinds.count("gap")
        assert events[at].gap.after_sequence == events[at - 1].sequence
        numbers = [event.sequence for event in events]
        assert numbers == sorted(numbers)
        assert numbers[-1] == 43
        assert status.hub.buffered_bytes == 0


async def test_buffers_are_bounded_by_bytes_as_well(database_url: str) -> None:
    async with rig(database_url, topic_bytes=50_000) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        await stream.next()
        unit = await claimed(status.db, HOLDER, task.id)
        for index in range(10):
            text = "y" * 10_000
            status.wake(await report(status.db, [Report(unit.lease, "output", text=text, byte_offset=index)]))
        await eventually(lambda: status.hub.buffered_bytes > 30_000)
        status.hub.sweep()
        assert (metrics.REGISTRY.get_sample_value("headrace_watch_buffered_bytes") or 0) > 30_000
        status.wake((await settle(status.db, [Complete(unit.lease, b"{}")])).wakes)
        await eventually(lambda: status.hub.buffered_bytes <= 50_000)
        events = await stream.rest()
        assert "gap" in [event.WhichOneof("event") for event in events] or sequences(events) == list(range(2, 14))


async def test_snapshot_and_events_under_concurrent_writes_leave_nothing_out_and_repeat_nothing(
    database_url: str,
) -> None:
    async with rig(database_url, SWEEP_ONLY) as status:
        task = await submitted(status.db)
        running = asyncio.create_task(run_task(status.db, HOLDER, task.id, outputs=150))
        streams = []
        while not running.done():
            stream = status.open(task.id)
            await stream.next()
            streams.append(asyncio.create_task(stream.rest()))
            await asyncio.wait({running}, timeout=0.01)
        await running
        for events in await asyncio.gather(*streams):
            start = events[0].sequence
            assert events[0].HasField("snapshot")
            assert [event.sequence for event in events[1:]] == list(range(start + 1, 154))


async def test_a_sequence_beyond_the_end_is_out_of_range(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        with pytest.raises(SequenceBeyondEnd):
            await status.open(task.id, after=2).next()
        assert status.hub.watched == 0


async def test_an_unknown_task_is_named(database_url: str) -> None:
    async with rig(database_url) as status:
        task, unknown = await submitted(status.db), new_id()
        with pytest.raises(TaskNotFound, match=str(unknown)):
            await status.open_with(WatchStart((task.id, unknown))).next()
        with pytest.raises(TaskNotFound):
            await status.open(unknown, after=0).next()


async def test_two_hundred_watchers_of_one_task_share_its_reads(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        streams = [status.open(task.id) for _ in range(200)]
        await asyncio.gather(*(stream.next() for stream in streams))
        assert status.hub.watched == 1
        status.wake(await run_task(status.db, HOLDER, task.id, outputs=20))
        everything = await asyncio.gather(*(stream.rest() for stream in streams))
        assert all(sequences(events) == list(range(2, 24)) for events in everything)
        shared = {id(events[-1]) for events in everything}
        assert len(shared) == 1  # one message for all of them


async def test_silence_brings_a_heartbeat(database_url: str) -> None:
    async with rig(database_url, heartbeat=0.05) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        await stream.next()
        event = await stream.next()
        assert event.HasField("heartbeat")
        assert (event.sequence, event.task_id) == (0, "")
        await stream.close()


async def test_a_drain_ends_every_stream_and_refuses_new_ones(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        await stream.next()
        waiting = asyncio.create_task(stream.next())
        await eventually(lambda: status.hub.watched == 1)
        status.hub.drain()
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await status.open(task.id).next()


async def test_watches_beyond_the_limit_are_refused(database_url: str) -> None:
    async with rig(database_url, max_watches=1) as status:
        task = await submitted(status.db)
        stream = status.open(task.id)
        await stream.next()
        with pytest.raises(ServerLimit):
            await status.open(task.id).next()
        await stream.close()
        await status.open(task.id).next()


async def test_a_shard_that_fails_does_not_end_the_watch_and_a_lost_quorum_does(database_url: str) -> None:
    async with rig(database_url, SWEEP_ONLY) as status:
        task = await planned(status.db, HOLDER, shards=3, needed=2)
        stream = status.open(task.id, after=0)
        error = b'{"reason": "NON_RETRYABLE", "type": "ValueError", "message": "no"}'
        for shard in (0, 1):
            unit = await claimed(status.db, HOLDER, task.id, shard)
            await settle(status.db, [Fail(unit.lease, "failure", "NON_RETRYABLE", error)], sharded=HOLDER.sharded)
        events = await stream.rest()
        failed = [event for event in events if event.state_change.state == task_pb2.TASK_STATE_FAILED]
        assert [event.state_change.terminal for event in failed] == [False, False, True]
        assert failed[0].unit == task_pb2.Unit(type=task_pb2.UNIT_TYPE_SHARD, shard_index=0)
        assert events[-1].unit.type == task_pb2.UNIT_TYPE_SHARD  # the shard that lost the quorum


async def test_a_terminal_event_that_is_not_the_last_does_not_end_a_resumed_watch(database_url: str) -> None:
    async with rig(database_url) as status:
        task = await submitted(status.db)
        await run_task(status.db, HOLDER, task.id, outputs=0)
        await _redrive(status.db, task.id)
        stream = status.open(task.id, after=0)
        assert [(await stream.next()).sequence for _ in range(4)] == [1, 2, 3, 4]
        assert stream.seen[2].state_change.terminal
        status.wake((await cancel(status.db, task.id)).wakes)
        events = await stream.rest()
        assert sequences(events) == [1, 2, 3, 4, 5]
        assert events[-1].state_change.state == task_pb2.TASK_STATE_CANCELLED


async def test_streams_leave_nothing_behind(database_url: str) -> None:
    async with rig(database_url) as status:
        tasks = [await submitted(status.db) for _ in range(5)]
        streams = [status.open(task.id) for task in tasks for _ in range(3)]
        for stream in streams:
            await stream.next()
        for stream in streams:
            await stream.close()
        assert status.hub.watched == 0
        status.hub.sweep()


async def _remove(db, task_id, up_to: int) -> None:  # type: ignore[no-untyped-def]
    statement = "delete from headrace_core.events where task_id = %(task)s and sequence <= %(up_to)s"
    await db.run(lambda tx: tx.execute(statement, {"task": task_id, "up_to": up_to}))


async def _redrive(db, task_id) -> None:  # type: ignore[no-untyped-def]
    """What a redrive does to the row and the log."""
    await db.run(
        lambda tx: tx.execute(
            """with again as (
                update headrace_core.units set state = 'PENDING', generation = generation + 1, sequence = sequence + 1,
                    ended_at = null
                where task_id = %(task)s and unit = -1 returning *)
            insert into headrace_core.events (task_id, sequence, generation, unit, attempt, type, state, reason)
            select task_id, sequence, generation, -1, 0, 'state', 'PENDING', 'REDRIVEN' from again""",
            {"task": task_id},
        )
    )
