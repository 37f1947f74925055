"""The load: intentions carried out at a steady rate by a few clients, until it is told to stop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from headrace.v1 import producer_pb2, task_pb2
from tests.faults.workload.clients import FaultsClient, is_ended
from tests.faults.workload.intentions import LABELS, Intention

AT_ONCE = 300
"""Tasks whose lives the clients follow at the same time."""
LOOK_PAUSE = 1.0
PATIENCE_PAUSE = 1.5
FOLLOW_SECONDS = 60.0
"""For how long a client waits for a task to fail so that it can redrive it."""


class Load:
    """Submits and follows tasks. `submitted` counts intentions, `unknown` are those whose fate nobody knows yet."""

    def __init__(
        self,
        clients: Sequence[FaultsClient],
        intentions: Iterator[Intention],
        rate: float,
        has_room: Callable[[], bool],
    ) -> None:
        """`rate`: tasks per second. `has_room` says whether more may be submitted."""
        self.submitted = 0
        self.accepted: dict[str, str] = {}
        """Key → id."""
        self.broken: list[str] = []
        """What broke in the load itself, which is a defect of this program."""
        self._clients = clients
        self._turn = itertools.cycle(clients)
        self._intentions = intentions
        self._rate = rate
        self._has_room = has_room
        self._unknown: dict[str, tuple[Intention, producer_pb2.SubmitTaskRequest]] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Submit until `stop`."""
        while not self._stopped.is_set():
            if len(self._lives) < AT_ONCE and self._has_room():
                group = self._next_group()
                self.submitted += len(group)
                self._begin(group)
                await self._pause(len(group) / self._rate)
            else:
                await self._pause(0.2)

    def stop(self) -> None:
        """Submit nothing more; what is being followed goes on."""
        self._stopped.set()

    async def finish(self, within: float) -> int:
        """Wait until nobody follows a task any more; return how many were given up after `within` seconds."""
        if not self._lives:
            return 0
        _, unfinished = await asyncio.wait(self._lives, timeout=within)
        for life in unfinished:
            life.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        return len(unfinished)

    async def resolve_unknown(self) -> None:
        """Submit again, with the same key, what nobody knows the fate of; every other one stays unknown for ever."""
        for intention, request in list(self._unknown.values())[::2]:
            task_id = await next(self._turn).submit(intention, request)
            if task_id is not None:
                self.accepted[intention.key] = task_id

    def _next_group(self) -> list[Intention]:
        first = next(self._intentions)
        return [first, *itertools.islice(self._intentions, max(first.batch - 1, 0))]

    def _begin(self, group: list[Intention]) -> None:
        life = asyncio.create_task(self._live(group), name=f"life-{group[0].key}")
        self._lives.add(life)
        life.add_done_callback(self._ended)

    def _ended(self, life: asyncio.Task[None]) -> None:
        self._lives.discard(life)
        if not life.cancelled() and (error := life.exception()):
            self.broken.append(f"{life.get_name()}: {type(error).__name__}: {error}")

    async def _live(self, group: list[Intention]) -> None:
        client = next(self._turn)
        requests = [self._request(client, intention) for intention in group]
        if group[0].batch:
            ids = await client.submit_many(group, requests)
        else:
            ids = [await self._submit(client, group[0], requests[0])]
        async with asyncio.TaskGroup() as lives:
            for intention, request, task_id in zip(group, requests, ids, strict=True):
                lives.create_task(self._follow(intention, request, task_id))

    async def _submit(
        self, client: FaultsClient, intention: Intention, request: producer_pb2.SubmitTaskRequest
    ) -> str | None:
        """Submit; without an answer again and again, with the same key, as far as the intention is patient."""
        task_id = await client.submit(intention, request)
        for _ in range(intention.patience):
            if task_id is not None:
                break
            await asyncio.sleep(PATIENCE_PAUSE)
            task_id = await client.submit(intention, request)
        return task_id

    async def _follow(self, intention: Intention, request: producer_pb2.SubmitTaskRequest, task_id: str | None) -> None:
        if task_id is None:
            self._unknown[intention.key] = (intention, request)
        else:
            self.accepted[intention.key] = task_id
        async with asyncio.TaskGroup() as doings:
            for pause in intention.repeats:
                doings.create_task(self._repeat(pause, intention, request))
            if task_id is None:
                return
            if intention.cancel_after is not None:
                doings.create_task(self._cancel(intention.cancel_after, task_id))
            for pause, leave_after in intention.looks:
                doings.create_task(self._watch(pause, task_id, leave_after))
            if intention.redrive:
                doings.create_task(self._redrive(intention, task_id))

    async def _repeat(self, pause: float, intention: Intention, request: producer_pb2.SubmitTaskRequest) -> None:
        await asyncio.sleep(pause)
        task_id = await next(self._turn).submit(intention, request)
        if task_id is not None:
            self.accepted[intention.key] = task_id
            self._unknown.pop(intention.key, None)

    async def _cancel(self, pause: float, task_id: str) -> None:
        await asyncio.sleep(pause)
        await next(self._turn).cancel(task_id)

    async def _watch(self, pause: float, task_id: str, leave_after: int) -> None:
        await asyncio.sleep(pause)
        await next(self._turn).watch(task_id, leave_after=leave_after)

    async def _redrive(self, intention: Intention, task_id: str) -> None:
        client = next(self._turn)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FOLLOW_SECONDS
        while not is_ended(task := await client.get(task_id)):
            if loop.time() > deadline:
                return  # the checker finds it unfinished
            await asyncio.sleep(LOOK_PAUSE)
        if task is not None and task.state == task_pb2.TASK_STATE_FAILED:
            await client.redrive(
                task_id, {**intention.payload, "healed": True} if intention.redrive == "healed" else None
            )

    def _request(self, client: FaultsClient, intention: Intention) -> producer_pb2.SubmitTaskRequest:
        return client.sdk.request(
            intention.kind,
            intention.payload,
            idempotency_key=intention.key,
            labels=LABELS,
            priority=intention.priority,
            run_at=_from_now(intention.delay),
            deadline=_from_now(intention.deadline),
            max_attempts=intention.max_attempts,
        )

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return


def _from_now(seconds: float | None) -> datetime | None:
    """A moment that stays the same in every repeat of the request."""
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
