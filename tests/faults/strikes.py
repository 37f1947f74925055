"""Carrying faults out on a running stack, and mending everything afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypeVar

import psycopg

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.errors import BusError, StreamMissing
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.stack.dev import LocalStack
from headrace_core.stack.errors import StackError
from headrace_core.stack.nats_cluster import NatsCluster
from tests.faults.processes import is_alive, send_to_tree
from tests.faults.recording import History
from tests.faults.schedule import NODES, WIRE_FAULTS, Strike
from tests.faults.wires import Wires

CONNECT_SECONDS = 10.0
STRIKE_SECONDS = 150.0
"""For a strike besides the time that it lasts: waiting for its turn, stopping and starting parts."""
START_TRIES = 3
REACHABLE_SECONDS = 60.0
T = TypeVar("T")
DELAY_SECONDS = 0.15
DUPLICATES = 60
NAMES = StreamNames()
TO_REPEAT = """
select task_id::text, unit, dispatch, queue, priority from headrace_core.units
where queue = 'faults' order by random() limit %s
"""
FAULTS = frozenset({"kill", "kill_leader", "freeze", "roll_out", "wipe", "delete_streams", "duplicate", *WIRE_FAULTS})
LEVELS = {1: "low", 2: "normal", 3: "high"}
Action = Callable[[Strike], AbstractAsyncContextManager[None]]


class Striker:
    """Carries strikes out, one call for each; several may run at once. `counts` are the strikes by fault and target."""

    def __init__(self, stack: LocalStack, wires: Wires, faults: History, cluster: NatsCluster | None = None) -> None:
        """`cluster`: the brokers that the services use in place of the stack's own."""
        self.counts: dict[str, int] = {}
        self.problems: list[str] = []
        """What could not be carried out or mended as it should."""
        self._stack = stack
        self._wires = wires
        self._faults = faults
        self._cluster = cluster
        self._busy: Mapping[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._actions: Mapping[str, Action] = {
            "kill": self._kill,
            "kill_leader": self._kill_leader,
            "freeze": self._freeze,
            "roll_out": self._roll_out,
            "wipe": self._wipe,
            "delete_streams": self._delete_streams,
            "duplicate": self._duplicate,
            **dict.fromkeys(WIRE_FAULTS, self._wire),
        }

    async def carry_out(self, strike: Strike) -> None:
        """Begin the fault, let it last, end it. Every step is bounded; what fails is noted in `problems`.

        A part or wire that another strike still works on is waited for.
        """
        name = f"{strike.fault} {strike.target}"
        try:
            async with asyncio.timeout(strike.seconds + STRIKE_SECONDS), contextlib.AsyncExitStack() as held:
                for part in self._parts_of(strike.target):
                    await held.enter_async_context(self._busy[part])
                self.counts[name] = self.counts.get(name, 0) + 1
                await self._strike(strike)
        except (StackError, BusError, psycopg.Error, TimeoutError) as error:
            self.problems.append(f"{name}: {type(error).__name__}: {error}")

    async def _strike(self, strike: Strike) -> None:
        about = {"fault": strike.fault, "target": strike.target}
        self._faults.note("fault_begun", **about, planned_at=strike.at, seconds=strike.seconds)
        try:
            async with self._actions[strike.fault](strike):
                await asyncio.sleep(strike.seconds)
        finally:
            self._faults.note("fault_ended", **about)

    async def mend(self) -> None:
        """End every fault: wires restored, frozen processes running, dead parts started. Raises StackError."""
        await self._wires.restore()
        self.thaw()
        for name in self._part_names():
            if not self._is_running(name):
                await self._start(name)
        if self._cluster is not None:
            await self._cluster.start()

    def thaw(self) -> None:
        """Let every process go on."""
        for name in (*self._part_names(), *(NODES if self._cluster else ())):
            self._signal(name, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _kill(self, strike: Strike) -> AsyncIterator[None]:
        if self._cluster is not None and strike.target in NODES:
            await self._cluster.kill_node(strike.target)
            yield
            await self._cluster.start_node(strike.target)
            return
        await self._stack.kill_part(strike.target)
        yield
        await self._start(strike.target)

    @contextlib.asynccontextmanager
    async def _freeze(self, strike: Strike) -> AsyncIterator[None]:
        self._signal(strike.target, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(strike.target, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _roll_out(self, strike: Strike) -> AsyncIterator[None]:
        yield
        for name in self._parts_of(strike.target):
            await self._stack.stop_part(name)
            await self._start(name)

    @contextlib.asynccontextmanager
    async def _wipe(self, strike: Strike) -> AsyncIterator[None]:
        await self._stack.kill_part("nats")
        await asyncio.to_thread(shutil.rmtree, self._stack.data_dir / "nats" / "jetstream", ignore_errors=True)
        yield
        await self._start("nats")

    @contextlib.asynccontextmanager
    async def _delete_streams(self, strike: Strike) -> AsyncIterator[None]:
        await self._when_reachable(self._delete_all_streams)
        yield

    @contextlib.asynccontextmanager
    async def _kill_leader(self, strike: Strike) -> AsyncIterator[None]:
        leader = await self._when_reachable(self._leader)
        assert self._cluster is not None, "only a cluster has a leader"
        self._faults.note("leader_found", fault=strike.fault, target=leader)
        async with self._busy[leader], self._kill(replace(strike, target=leader)):
            yield

    @contextlib.asynccontextmanager
    async def _duplicate(self, strike: Strike) -> AsyncIterator[None]:
        """Publish messages of tasks again, of old ones too, each under an id that the stream has not seen."""
        await self._when_reachable(lambda: self._publish_again(f"{strike.at}"))
        yield

    @contextlib.asynccontextmanager
    async def _wire(self, strike: Strike) -> AsyncIterator[None]:
        proxy = self._wires.of(strike.target)
        if strike.fault == "cut":
            await proxy.cut()
        elif strike.fault == "delay":
            proxy.delay(DELAY_SECONDS)
        else:
            {"hold": proxy.hold, "hold_replies": proxy.hold_replies, "half_close": proxy.half_close}[strike.fault]()
        try:
            yield
        finally:
            await proxy.restore()

    async def _delete_all_streams(self) -> None:
        async with self._bus() as bus:
            for stream in (NAMES.tasks, NAMES.dead_letters, NAMES.advisories):
                with contextlib.suppress(StreamMissing):
                    await bus.request(f"$JS.API.STREAM.DELETE.{stream}")

    async def _leader(self) -> str:
        async with self._bus() as bus:
            info = await bus.request(f"$JS.API.STREAM.INFO.{NAMES.tasks}")
        return str(info["cluster"]["leader"])

    async def _publish_again(self, number: str) -> None:
        async with await psycopg.AsyncConnection.connect(self._stack.endpoints.database_url, connect_timeout=5) as db:
            rows = await (await db.execute(TO_REPEAT, (DUPLICATES,))).fetchall()
        messages = [
            OutgoingMessage(
                NAMES.task_subject(f"{queue}.{LEVELS[priority]}"),
                json.dumps({"task": task, "unit": unit, "dispatch": dispatch}).encode(),
                message_id=f"again-{task}-{unit}-{dispatch}-{number}",
            )
            for task, unit, dispatch, queue, priority in rows
        ]
        async with self._bus() as bus:
            publisher = Publisher(bus)
            try:
                await publisher.publish(messages)
            finally:
                await publisher.close()

    async def _when_reachable(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do what needs Postgres or the broker, again until the strike of the other lane lets it."""
        end = asyncio.get_running_loop().time() + REACHABLE_SECONDS
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS * 2):
                    return await act()
            except (BusError, psycopg.Error, TimeoutError):
                if asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(0.5)

    @contextlib.asynccontextmanager
    async def _bus(self) -> AsyncIterator[Bus]:
        bus = Bus(self._cluster.url if self._cluster else self._stack.endpoints.nats_url, name="faults")
        try:
            await bus.connect(CONNECT_SECONDS)
            yield bus
        finally:
            await bus.close()

    def _signal(self, name: str, number: signal.Signals) -> None:
        part: Any = self._part(name)
        if part.pid is None or not self._is_running(name):
            return
        if name == "postgres":
            send_to_tree(part.pid, number)
        else:
            os.kill(part.pid, number)

    async def _start(self, name: str) -> None:
        """Start a part as a supervisor would: again if it gives up because a server is away. Raises StackError."""
        for tries_left in reversed(range(START_TRIES)):
            try:
                return await self._stack.start_part(name)
            except StackError as error:
                self._faults.note("start_failed", target=name, error=error.message)
                if not tries_left:
                    raise
        return None

    def _parts_of(self, target: str) -> list[str]:
        """The parts that a target names, in an order that all strikes share."""
        if target != "consumers":
            return [target]
        return sorted(name for name in self._stack.services if name.startswith("consumer"))

    def _part(self, name: str) -> Any:
        parts = {"postgres": self._stack.postgres, "nats": self._stack.nats, **self._stack.services}
        if self._cluster is not None and name in NODES:
            return self._cluster.node(name)
        return parts[name]

    def _part_names(self) -> list[str]:
        """Servers first: services need them to start."""
        return ["postgres", "nats", *self._stack.services]

    def _is_running(self, name: str) -> bool:
        pid = self._part(name).pid
        return pid is not None and is_alive(pid)
