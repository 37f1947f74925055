"""Watching never lies (G6), through the real services."""

import asyncio

import pytest

from headrace import Client
from headrace.v1 import event_pb2


async def events_after(client: Client, id: str, after: int | None) -> list[event_pb2.TaskEvent]:
    return [event async for event in client.watch(id, after_sequence=after)]


async def test_a_watch_resumed_at_any_event_shows_the_rest_once_and_in_order(client: Client) -> None:
    task = await client.submit("counts", {"steps": 12, "pause": 0.05})
    live = await events_after(client, task.id, None)
    assert live[0].WhichOneof("event") == "snapshot"
    assert live[-1].state_change.terminal
    whole = await events_after(client, task.id, 0)
    last = whole[-1].sequence
    assert [event.sequence for event in whole] == list(range(1, last + 1))
    by_sequence = {event.sequence: event for event in whole}
    assert all(event == by_sequence[event.sequence] for event in live[1:])
    for cut in range(last):
        rest = await events_after(client, task.id, cut)
        assert [event.sequence for event in rest] == list(range(cut + 1, last + 1))


async def test_output_arrives_whole_and_in_order(client: Client) -> None:
    task = await client.submit("counts", {"steps": 20, "pause": 0.01})
    chunks = [event.output for event in await events_after(client, task.id, 0) if event.HasField("output")]
    assert "".join(chunk.text for chunk in chunks) == "".join(f"{step};" for step in range(20))
    offset = 0
    for chunk in chunks:
        assert chunk.offset == offset
        offset += len(chunk.text.encode())


async def test_two_hundred_watchers_of_one_task_see_the_same(client: Client) -> None:
    task = await client.submit("counts", {"steps": 10, "pause": 0.1})
    async with asyncio.timeout(60):
        streams = await asyncio.gather(*(events_after(client, task.id, 0) for _ in range(200)))
    first = [event.SerializeToString(deterministic=True) for event in streams[0]]
    assert streams[0][-1].state_change.terminal
    for stream in streams[1:]:
        assert [event.SerializeToString(deterministic=True) for event in stream] == first


@pytest.mark.parametrize("kind", ["echo", "squares"])
async def test_a_watch_of_what_has_ended_is_a_snapshot(client: Client, kind: str) -> None:
    task = await client.submit(kind, {"count": 2})
    await client.result(task.id, timeout=30)
    (snapshot,) = await events_after(client, task.id, None)
    assert snapshot.snapshot.id == task.id
