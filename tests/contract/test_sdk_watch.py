"""A watch delivers every event once and in order, whatever happens to its connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest

from headrace import Client, errors
from headrace.v1 import event_pb2, task_pb2
from headrace.watch import COMMIT_SECONDS
from tests.contract.scripted import (
    TASK,
    Script,
    ScriptedServer,
    Step,
    gap,
    heartbeat,
    life,
    progress,
    refusal,
    serving,
    snapshot,
    state,
)
from tests.fixtures.proxy import Proxy

CUT = refusal(grpc.StatusCode.UNAVAILABLE, message="connection lost")
DRAINING = refusal(grpc.StatusCode.UNAVAILABLE, "DRAINING")
BOUND = 20


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with serving(Script()) as scripted:
        yield scripted


def client_of(address: str, **changes: float) -> Client:
    return Client(producer=address, status=address, **{"timeout": 5.0, **changes})  # type: ignore[arg-type]


async def collect(events: AsyncIterator[event_pb2.TaskEvent]) -> list[event_pb2.TaskEvent]:
    async with asyncio.timeout(BOUND):
        return [event async for event in events]


def sequences(events: list[event_pb2.TaskEvent]) -> list[int]:
    return [event.sequence for event in events]


@pytest.mark.parametrize("end", [CUT, DRAINING], ids=["cut", "draining"])
@pytest.mark.parametrize("cut_after", range(7))
async def test_resumes_wherever_the_stream_is_cut(server: ScriptedServer, cut_after: int, end: Step) -> None:
    events = life()
    server.script.watches += [[*events[:cut_after], end], [*events[cut_after:]]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK, after_sequence=0))
    assert sequences(seen) == [1, 2, 3, 4, 5, 6]
    asked = [request.after_sequence for request in server.script.asked("WatchTask")]
    assert asked == [0, cut_after]


@pytest.mark.parametrize("cut_after", range(1, 6))
async def test_a_watch_with_a_snapshot_resumes_without_one(server: ScriptedServer, cut_after: int) -> None:
    events = [snapshot(2, task_pb2.TASK_STATE_PROCESSING), *life()[2:]]
    server.script.watches += [[*events[:cut_after], CUT], [*events[cut_after:]]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK))
    assert sequences(seen) == [2, 3, 4, 5, 6]
    first, second = server.script.asked("WatchTask")
    assert not first.HasField("after_sequence")
    assert second.after_sequence == events[cut_after - 1].sequence


@pytest.mark.parametrize("cut_after", range(1, 6))
async def test_resumes_when_the_wire_itself_is_cut(server: ScriptedServer, cut_after: int) -> None:
    never = asyncio.Event()
    events = life()
    server.script.watches += [[*events[:cut_after], never.wait], [*events[cut_after:]]]
    seen = []
    async with Proxy(server.port) as proxy, client_of(f"127.0.0.1:{proxy.port}") as client:
        async with asyncio.timeout(BOUND):
            async for event in client.watch(TASK, after_sequence=0):
                seen.append(event)
                if event.sequence == cut_after:
                    await proxy.cut()
                    await proxy.restore()
    never.set()
    assert sequences(seen) == [1, 2, 3, 4, 5, 6]


async def test_repeated_events_are_dropped(server: ScriptedServer) -> None:
    events = life()
    server.script.watches += [[*events[:4], CUT], [*events[1:]]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK, after_sequence=0))
    assert sequences(seen) == [1, 2, 3, 4, 5, 6]


async def test_a_hole_is_read_again(server: ScriptedServer) -> None:
    events = life()
    server.script.watches += [[*events[:2], *events[3:]], [*events[2:]]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK, after_sequence=0))
    assert sequences(seen) == [1, 2, 3, 4, 5, 6]
    assert [request.after_sequence for request in server.script.asked("WatchTask")] == [0, 2]


async def test_an_early_ok_is_not_the_end(server: ScriptedServer) -> None:
    events = life()
    server.script.watches += [[*events[:3]], [*events[3:]]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK, after_sequence=0))
    assert sequences(seen) == [1, 2, 3, 4, 5, 6]


async def test_nothing_after_the_last_event_is_the_end(server: ScriptedServer) -> None:
    server.script.watches += [[]]
    async with client_of(server.address) as client:
        assert await collect(client.watch(TASK, after_sequence=6)) == []


async def test_events_after_a_redrive_are_part_of_the_watch(server: ScriptedServer) -> None:
    failed = state(2, task_pb2.TASK_STATE_FAILED, terminal=True)
    again = [state(3, task_pb2.TASK_STATE_PENDING), state(4, task_pb2.TASK_STATE_COMPLETED, terminal=True)]
    server.script.watches += [[life()[0], failed, *again]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK, after_sequence=0))
    assert sequences(seen) == [1, 2, 3, 4]


async def test_a_gap_without_its_snapshot_asks_for_one(server: ScriptedServer) -> None:
    rest = [snapshot(5, task_pb2.TASK_STATE_PROCESSING), life()[5]]
    server.script.watches += [[gap(5, 1), CUT], rest]
    async with client_of(server.address) as client:
        seen = await collect(client.watch(TASK, after_sequence=1))
    assert [event.WhichOneof("event") for event in seen] == ["gap", "snapshot", "state_change"]
    assert not server.script.asked("WatchTask")[1].HasField("after_sequence")


async def test_silence_connects_again(server: ScriptedServer) -> None:
    never = asyncio.Event()
    server.script.watches += [[life()[0], never.wait], [*life()[1:]]]
    async with client_of(server.address, silence_timeout=0.3) as client:
        seen = await collect(client.watch(TASK, after_sequence=0))
    never.set()
    assert sequences(seen) == [1, 2, 3, 4, 5, 6]


async def test_heartbeats_are_shown_on_demand_only(server: ScriptedServer) -> None:
    steps: list[Step] = [life()[0], heartbeat(), *life()[1:]]
    server.script.watches += [steps, steps]
    async with client_of(server.address) as client:
        assert len(await collect(client.watch(TASK, after_sequence=0))) == 6
        seen = await collect(client.watch(TASK, after_sequence=0, heartbeats=True))
    assert [event.HasField("heartbeat") for event in seen].count(True) == 1


async def test_an_unknown_task_is_said_at_once(server: ScriptedServer) -> None:
    server.script.watches += [[refusal(grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND")]]
    async with client_of(server.address) as client:
        with pytest.raises(errors.TaskNotFoundError):
            await collect(client.watch(TASK))
    assert len(server.script.asked("WatchTask")) == 1


async def test_a_defect_of_the_server_is_not_repeated(server: ScriptedServer) -> None:
    server.script.watches += [[refusal(grpc.StatusCode.INTERNAL, "INTERNAL")]]
    async with client_of(server.address) as client:
        with pytest.raises(errors.InternalError):
            await collect(client.watch(TASK))


async def test_a_server_that_never_answers_ends_the_watch() -> None:
    async with client_of("127.0.0.1:1", timeout=0.5) as client:
        with pytest.raises(errors.UnavailableError):
            await collect(client.watch(TASK))


async def test_a_server_that_stays_away_ends_the_watch(server: ScriptedServer) -> None:
    server.script.watches += [[life()[0], CUT], *([CUT] for _ in range(50))]
    async with client_of(server.address, reconnect_timeout=0.6) as client:
        with pytest.raises(errors.UnavailableError, match="connection lost"):
            await collect(client.watch(TASK, after_sequence=0))
    assert len(server.script.asked("WatchTask")) > 2


async def test_leaving_early_ends_the_call(server: ScriptedServer) -> None:
    ended = asyncio.Event()

    async def hold() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server.script.watches += [[life()[0], hold]]
    async with client_of(server.address) as client, asyncio.timeout(BOUND):
        async with aclosing(client.watch(TASK, after_sequence=0)) as events:
            await anext(events)
        await ended.wait()


async def test_closing_the_client_ends_a_watch(server: ScriptedServer) -> None:
    server.script.watches += [[life()[0], asyncio.Event().wait]]
    client = client_of(server.address)
    async with asyncio.timeout(BOUND), aclosing(client.watch(TASK, after_sequence=0)) as events:
        await anext(events)
        waiting = asyncio.ensure_future(anext(events))
        await client.close()
        with pytest.raises(errors.ClientClosedError):
            await waiting


async def test_many_tasks_resume_each_where_it_was(server: ScriptedServer) -> None:
    other = TASK.replace("1", "2")
    done = state(2, task_pb2.TASK_STATE_COMPLETED, terminal=True)
    done_other = state(3, task_pb2.TASK_STATE_FAILED, terminal=True, task=other)
    first: list[Step] = [snapshot(1, task_pb2.TASK_STATE_PENDING), snapshot(2, task_pb2.TASK_STATE_PENDING, other)]
    server.script.watches += [[*first, CUT], [done_other, CUT], [done]]
    async with client_of(server.address) as client:
        seen = await collect(client.watch_many([TASK, other]))
    assert [(event.task_id, event.sequence) for event in seen] == [(TASK, 1), (other, 2), (other, 3), (TASK, 2)]
    asked = server.script.asked("WatchTasks")
    assert [dict(request.after_sequences) for request in asked] == [{}, {TASK: 1, other: 2}, {TASK: 1, other: 3}]
    assert all(list(request.ids) == [TASK, other] for request in asked)


def at(event: event_pb2.TaskEvent, seconds: int) -> event_pb2.TaskEvent:
    event.time.seconds = seconds
    return event


async def test_a_watch_by_label_goes_on_for_ever_and_asks_for_what_ended_meanwhile(server: ScriptedServer) -> None:
    other, long_over = TASK.replace("1", "2"), TASK.replace("1", "3")
    server.script.watches += [
        [
            at(heartbeat(), 1_000),
            at(snapshot(4, task_pb2.TASK_STATE_COMPLETED, long_over), 1_000),
            at(snapshot(6, task_pb2.TASK_STATE_COMPLETED), 1_090),
            at(snapshot(1, task_pb2.TASK_STATE_PENDING, other), 1_100),
        ],
        [at(progress(2, 0.5, other), 1_101), asyncio.Event().wait],
    ]
    async with (
        client_of(server.address) as client,
        asyncio.timeout(BOUND),
        aclosing(client.watch_many(labels={"run": "1"})) as events,
    ):
        seen = [await anext(events) for _ in range(4)]
    assert sequences(seen) == [4, 6, 1, 2]
    first, second = server.script.asked("WatchTasks")
    assert not first.HasField("ended_since")
    assert second.ended_since.seconds == 1_100 - COMMIT_SECONDS
    # What ended before that time is not shown again, and need not be named.
    assert dict(second.after_sequences) == {TASK: 6, other: 1}
    assert dict(second.filter.labels) == {"run": "1"}
    assert second.filter.namespace == "default"
